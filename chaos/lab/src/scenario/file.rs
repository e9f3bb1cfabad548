//! Scenario files: TOML with a story inside, read to a plain list of steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde::Deserialize;
use toml::Spanned;

use super::step::{Expect, Line, Step};
use crate::{Spec, duration, fault::FaultCommand, machines};

/// Steps at the most: a loop in a loop is soon longer than anybody waits.
const MAX_STEPS: usize = 10_000;

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

/// A step with its place in the file.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub line: usize,
    /// As it was read, chance drawn.
    pub text: String,
    pub step: Step,
}

/// A scenario that can be run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The file's name without its end.
    pub name: String,
    /// What happens, in a sentence.
    pub title: String,
    /// Why it must end well.
    pub why: String,
    /// What chance was drawn from.
    pub seed: u64,
    pub(super) nodes: u8,
    pub(super) etcd: u8,
    pub(super) agent_flags: Vec<String>,
    /// Texts that make an ERROR in an agent's log one that the story brings about.
    pub(super) allow_errors: Vec<String>,
    pub(super) steps: Vec<Placed>,
}

/// The file of a scenario that somebody named: a path, or a name in `chaos/scenarios`, here or where this program
/// was built.
///
/// # Errors
/// When there is none; the text lists the names that there are.
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
    /// With the file's name and the line of the first mistake.
    pub fn read(path: &Path, seed: u64) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("scenario");
        Self::parse(name, &text, seed).with_context(|| format!("{}", path.display()))
    }

    /// The same story, in which everything may take so many times as long: for machines that have other things to do.
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
    /// With the line of the first mistake.
    pub fn parse(name: &str, text: &str, seed: u64) -> Result<Self> {
        let raw: Raw = toml::from_str(text)?;
        let mut reader = Reader {
            random: SmallRng::seed_from_u64(seed),
            spec: Spec {
                nodes: raw.fleet.nodes,
                etcd: raw.fleet.etcd,
                pools: Vec::new(),
                block_prefix_v4: 24,
                programs: PathBuf::new(),
                agent_flags: Vec::new(),
            },
            variables: BTreeMap::new(),
            steps: Vec::new(),
            marks: BTreeSet::new(),
            endpoints: BTreeSet::new(),
            probes: BTreeSet::new(),
        };
        reader.spec.check().context("[fleet]")?;
        let lines = story_lines(text, &raw.story);
        let rest = reader.block(&lines, false)?;
        ensure!(rest.is_empty(), "line {}: an `end` without `each` or `repeat`", rest[0].0);
        ensure!(
            reader.steps.iter().any(|placed| matches!(placed.step, Step::Expect(_))),
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
            steps: reader.steps,
        })
    }
}

/// The story's lines with their numbers in the file; without comments and empty ones.
fn story_lines<'a>(file: &str, story: &'a Spanned<String>) -> Vec<(usize, &'a str)> {
    let span = story.span();
    let first = file[..span.start].matches('\n').count() + 1;
    let source = &file[span];
    // A line break right after the opening quotes is not a part of the text.
    let skipped = usize::from(["'''\n", "\"\"\"\n"].iter().any(|quotes| source.starts_with(quotes)));
    let lines = story.get_ref().lines().enumerate();
    lines
        .map(|(index, line)| (first + skipped + index, line.split('#').next().unwrap_or_default().trim()))
        .filter(|(_, line)| !line.is_empty())
        .collect()
}

struct Reader {
    random: SmallRng,
    spec: Spec,
    variables: BTreeMap<String, String>,
    steps: Vec<Placed>,
    marks: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    probes: BTreeSet<String>,
}

type Lines<'a> = &'a [(usize, &'a str)];

impl Reader {
    /// Reads lines up to the `end` of a block, and gives those after it.
    fn block<'a>(&mut self, mut lines: Lines<'a>, inner: bool) -> Result<Lines<'a>> {
        while let Some(((number, line), after)) = lines.split_first() {
            let (number, mut after) = (*number, after);
            let at = || format!("line {number}: {line}");
            if *line == "end" {
                return Ok(if inner { after } else { lines });
            }
            let line = self.substitute(line).with_context(at)?;
            let words = split(&line).with_context(at)?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["pick", name, "from", choices @ ..] => {
                    let choices = self.names(choices).with_context(at)?;
                    let choice = choices[self.random.random_range(0..choices.len())].clone();
                    self.variables.insert((*name).to_owned(), choice);
                }
                ["each", name, "in", choices @ ..] => {
                    let mut rest = None;
                    for choice in self.names(choices).with_context(at)? {
                        self.variables.insert((*name).to_owned(), choice);
                        rest = Some(self.block(after, true)?);
                    }
                    after = rest.context("each of nothing").with_context(at)?;
                }
                ["repeat", count] => {
                    let count: usize = count.parse().context("repeat takes a number").with_context(at)?;
                    ensure!(count > 0, "{}: repeat at least once", at());
                    let mut rest = after;
                    for round in 1..=count {
                        self.variables.insert("round".to_owned(), round.to_string());
                        rest = self.block(after, true)?;
                    }
                    after = rest;
                }
                ["pick" | "each" | "repeat", ..] => {
                    bail!("{}: write `pick NAME from A B`, `each NAME in A B` or `repeat 20`", at())
                }
                _ => self.step(number, &line, &words).with_context(at)?,
            }
            ensure!(self.steps.len() <= MAX_STEPS, "{}: more than {MAX_STEPS} steps", at());
            lines = after;
        }
        ensure!(!inner, "a block has no `end`");
        Ok(lines)
    }

    /// `{name}` becomes what was drawn.
    fn substitute(&self, line: &str) -> Result<String> {
        let mut text = line.to_owned();
        for (name, value) in &self.variables {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        match text.split_once('{').and_then(|(_, rest)| rest.split_once('}')) {
            Some((unknown, _)) => bail!("nothing was picked as {unknown}"),
            None => Ok(text),
        }
    }

    /// Words to choose from; sets of machines are taken apart.
    fn names(&self, words: &[&str]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for word in words {
            match machines::parse(&self.spec, word) {
                Ok(machines) => names.extend(machines),
                Err(_) => names.push((*word).to_owned()),
            }
        }
        ensure!(!names.is_empty(), "nothing to choose from");
        Ok(names)
    }

    fn step(&mut self, line: usize, text: &str, words: &[&str]) -> Result<()> {
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut text = text.to_owned();
        if words.len() == 2 && words[0] == "wait" && words[1].contains("..") {
            let (least, most) = words[1].split_once("..").context("a range has two ends")?;
            let [least, most] = [least, most].map(duration::parse);
            let (least, most) = (least.map_err(anyhow::Error::msg)?, most.map_err(anyhow::Error::msg)?);
            ensure!(least <= most, "a range goes from less to more");
            let drawn = self.random.random_range(least.as_millis() as u64..=most.as_millis() as u64);
            words[1] = format!("{drawn}ms");
            text = words.join(" ");
        }
        let step = match Line::try_parse_from(&words) {
            Ok(line) => line.step,
            Err(error) => {
                // The first part says what is wrong; the rest is a usage of programs.
                let message = error.to_string();
                let message = message.split("\n\nUsage").next().unwrap_or_default();
                bail!("{}", message.trim_start_matches("error: ").trim())
            }
        };
        self.check(&step)?;
        self.steps.push(Placed { line, text, step });
        Ok(())
    }

    /// Whether what a step names is there by then.
    fn check(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Endpoint { endpoint, labels } => {
                labels.parse::<identity::Labels>()?;
                let (node, name) = endpoint.split_once('/').context("an endpoint is NODE/NAME")?;
                self.node(node)?;
                identity::EndpointName::new(name)?;
                ensure!(self.endpoints.insert(endpoint.clone()), "endpoint {endpoint} is there already");
            }
            Step::Delete { endpoint } => {
                ensure!(self.endpoints.remove(endpoint), "no endpoint {endpoint} is there");
            }
            Step::Probe(probe) => {
                let (name, from, to) = probe.parties();
                [from, to].into_iter().try_for_each(|endpoint| self.endpoint(endpoint))?;
                ensure!(
                    name != "all" && !name.contains(','),
                    "`all` names all probes, and commas part several"
                );
                ensure!(self.probes.insert(name.to_owned()), "there was a probe {name} before");
            }
            Step::Finish { probe } => self.probe(probe)?,
            Step::Mark { name } => drop(self.marks.insert(name.clone())),
            Step::Wait { .. } => {}
            Step::Fault(FaultCommand::Reboot { node }) => {
                self.node(node)?;
                self.endpoints.retain(|endpoint| !endpoint.starts_with(&format!("{node}/")));
            }
            Step::Fault(FaultCommand::Etcd(_)) => {
                ensure!(self.spec.etcd > 0, "this fleet has no etcd");
            }
            Step::Fault(command) => {
                for text in command.machine_sets() {
                    machines::parse(&self.spec, text)?;
                }
            }
            Step::Expect(expect) => match expect {
                Expect::Clean { probe, since, until, .. } => {
                    self.probe(probe)?;
                    self.mark(since)?;
                    self.mark(until)?;
                }
                Expect::Losses { probe, since } => {
                    self.probe(probe)?;
                    self.mark(since)?;
                }
                Expect::Reaches { from, to, .. } => {
                    [from, to].into_iter().try_for_each(|endpoint| self.endpoint(endpoint))?;
                }
                Expect::Converged { since, .. } | Expect::Kept { since } => self.mark(since)?,
                Expect::Recorded { .. } => {}
                Expect::Ready { nodes, .. } | Expect::Status { nodes, .. } => {
                    for machine in machines::parse(&self.spec, nodes)? {
                        self.node(&machine)?;
                    }
                }
            },
        }
        Ok(())
    }

    fn node(&self, node: &str) -> Result<()> {
        ensure!(self.spec.node_names().any(|name| name == node), "this fleet has no node {node}");
        Ok(())
    }

    fn endpoint(&self, endpoint: &str) -> Result<()> {
        ensure!(self.endpoints.contains(endpoint), "no endpoint {endpoint} is there at this point");
        Ok(())
    }

    fn probe(&self, probe: &str) -> Result<()> {
        if probe != "all" {
            for name in probe.split(',') {
                ensure!(self.probes.contains(name), "no probe {name} was begun");
            }
        }
        Ok(())
    }

    fn mark(&self, mark: &Option<String>) -> Result<()> {
        let known = mark.as_ref().is_none_or(|mark| self.marks.contains(mark));
        ensure!(known, "no mark {} was set", mark.as_deref().unwrap_or_default());
        Ok(())
    }
}

/// Words, with double quotes around those that have spaces.
fn split(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    for (index, part) in line.split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    ensure!(line.matches('"').count().is_multiple_of(2), "a quote is not closed");
    Ok(words)
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
    fn a_story_becomes_a_list() {
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
    fn chance_is_drawn_from_the_seed() {
        let story = "pick one from nodes\nwait 1s..5s\nkill {one}\nexpect recorded";
        let drawn = |seed| scenario(story, seed).unwrap().steps[1].text.clone();
        assert_eq!(drawn(3), drawn(3));
        let several: BTreeSet<String> = (0..20).map(drawn).collect();
        assert_eq!(several.into_iter().collect::<Vec<_>>(), ["kill n1", "kill n2", "kill n3"]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
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
    fn all_scenarios_of_this_repository_can_be_read() {
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
