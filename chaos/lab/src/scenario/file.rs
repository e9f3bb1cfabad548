//! Scenario files: TOML with the steps inside, read into a plain list of steps.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use toml::Spanned;

use super::{
    reader::{Placed, Reader},
    step::Step,
};
use crate::Spec;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    title: String,
    why: String,
    fleet: RawFleet,
    #[serde(default)]
    allow_errors: Vec<String>,
    story: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFleet {
    nodes: u8,
    etcd: u8,
    #[serde(default)]
    agent_flags: Vec<String>,
}

/// A scenario that can be run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The file's name without its extension.
    pub name: String,
    /// What happens, in a sentence.
    pub title: String,
    /// Why it must end well.
    pub why: String,
    /// The seed of the random choices.
    pub seed: u64,
    pub(super) nodes: u8,
    pub(super) etcd: u8,
    pub(super) agent_flags: Vec<String>,
    /// Texts of ERROR lines in agents' logs that the scenario causes.
    pub(super) allow_errors: Vec<String>,
    pub(super) steps: Vec<Placed>,
}

/// The file of a scenario, from a path or a name in `chaos/scenarios`, here or where this program was built.
///
/// # Errors
/// When there is none; the text lists the existing names.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.is_file() {
        return Ok(path);
    }
    let folders =
        [PathBuf::from("chaos/scenarios"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")];
    let file = format!("{name}.toml");
    if let Some(found) = folders.iter().map(|folder| folder.join(&file)).find(|path| path.is_file()) {
        return Ok(found);
    }
    let names: BTreeSet<String> = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    bail!("no scenario {name}: give a file, or one of {}", names.into_iter().collect::<Vec<_>>().join(", "))
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// With the file's name and the line of the first error.
    pub fn read(path: &Path, seed: u64) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("scenario");
        Self::parse(name, &text, seed).with_context(|| format!("{}", path.display()))
    }

    /// The same scenario with all times multiplied: for busy machines.
    pub fn with_patience(mut self, factor: u32) -> Self {
        for placed in &mut self.steps {
            if let Step::Expect(expect) = &mut placed.step
                && let Some(within) = expect.limit()
            {
                *within *= factor;
            }
        }
        self
    }

    /// Reads a scenario's text.
    ///
    /// # Errors
    /// With the line of the first error.
    pub fn parse(name: &str, text: &str, seed: u64) -> Result<Self> {
        let raw: Raw = toml::from_str(text)?;
        let spec = Spec {
            nodes: raw.fleet.nodes,
            etcd: raw.fleet.etcd,
            pools: Vec::new(),
            block_prefix_v4: 24,
            programs: PathBuf::new(),
            agent_flags: Vec::new(),
        };
        spec.check().context("[fleet]")?;
        let steps = Reader::new(spec, seed).read(&story_lines(text, &raw.story))?;
        ensure!(
            steps.iter().any(|placed| matches!(placed.step, Step::Expect(_))),
            "the story expects nothing: it could not fail"
        );
        Ok(Self {
            name: name.to_owned(),
            title: raw.title,
            why: raw.why.trim().to_owned(),
            seed,
            nodes: raw.fleet.nodes,
            etcd: raw.fleet.etcd,
            agent_flags: raw.fleet.agent_flags,
            allow_errors: raw.allow_errors,
            steps,
        })
    }
}

/// The lines with steps and their numbers in the file, without comments and empty lines.
fn story_lines<'a>(file: &str, story: &'a Spanned<String>) -> Vec<(usize, &'a str)> {
    let span = story.span();
    let first = file[..span.start].matches('\n').count() + 1;
    let source = &file[span];
    // A line break right after the opening quotes is not part of the text.
    let skipped = usize::from(["'''\n", "\"\"\"\n"].iter().any(|quotes| source.starts_with(quotes)));
    let lines = story.get_ref().lines().enumerate();
    lines
        .map(|(index, line)| (first + skipped + index, line.split('#').next().unwrap_or_default().trim()))
        .filter(|(_, line)| !line.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(story: &str, seed: u64) -> Result<Scenario> {
        let text =
            format!("title = 't'\nwhy = 'w'\nstory = '''\n{story}\n'''\n[fleet]\nnodes = 3\netcd = 3\n");
        Scenario::parse("test", &text, seed)
    }

    fn steps(story: &str) -> Vec<String> {
        let scenario = scenario(&format!("{story}\nexpect recorded"), 7).unwrap();
        scenario.steps.iter().map(|it| format!("{} {}", it.line, it.text)).collect()
    }

    #[test]
    fn scenario_is_parsed_into_steps() {
        let story =
            "repeat 2\n each node in n1 n2  # both\n  kill {node}\n  start {node}\n end\nend\nmark {round}";
        let expected = [
            "6 kill n1",
            "7 start n1",
            "6 kill n2",
            "7 start n2",
            "6 kill n1",
            "7 start n1",
            "6 kill n2",
            "7 start n2",
            "10 mark 2",
            "11 expect recorded",
        ];
        assert_eq!(steps(story), expected);
    }

    #[test]
    fn scenario_random_choices_follow_the_seed() {
        let story = "pick one from nodes\nwait 1s..5s\nkill {one}\nexpect recorded";
        let drawn = |seed| scenario(story, seed).unwrap().steps[1].text.clone();
        assert_eq!(drawn(3), drawn(3));
        let several: BTreeSet<String> = (0..20).map(drawn).collect();
        assert_eq!(several.into_iter().collect::<Vec<_>>(), ["kill n1", "kill n2", "kill n3"]);
    }

    #[test]
    fn scenario_errors_name_their_line() {
        for (story, expected) in [
            ("kill n9", "line 4: kill n9: this lab has no machine \"n9\""),
            ("\nkil n1", "line 5: kil n1: unrecognized subcommand 'kil'"),
            ("wait 5", "line 4: wait 5: invalid value '5'"),
            ("kill {x}", "nothing was picked as x"),
            ("delete n1/a", "no endpoint n1/a is there"),
            (
                "endpoint n1/a app=a\nprobe ping p n1/a n2/b",
                "line 5: probe ping p n1/a n2/b: no endpoint n2/b",
            ),
            ("endpoint n1 app=a", "an endpoint is NODE/NAME"),
            ("expect kept --since healed", "no mark healed"),
            ("expect clean p", "no probe p was begun"),
            ("expect status e1 x", "no node e1"),
            ("repeat 3\nwait 1s", "a block has no `end`"),
            ("end", "line 4: an `end` without"),
            ("each x\nend", "write `pick NAME from A B`"),
            ("wait 1s", "the story expects nothing"),
            ("expect status n1 \"x", "a quote is not closed"),
            ("repeat 200\nrepeat 200\nwait 1s\nend\nend", "more than 10000 steps"),
        ] {
            let error = format!("{:#}", scenario(story, 7).unwrap_err());
            assert!(error.contains(expected), "{story}: {error}");
        }
        let error = Scenario::parse("test", "title = \"t\"\nfleat = 1", 1).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("fleat"), "{error}");
    }

    #[test]
    fn scenarios_of_this_repository_are_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "toml") {
                for seed in 0..5 {
                    Scenario::read(&path, seed).unwrap_or_else(|error| panic!("{error:#}"));
                }
                count += 1;
            }
        }
        assert!(count > 5, "{count}");
    }
}
