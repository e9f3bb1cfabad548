//! Reads the lines of a scenario: blocks are repeated, random choices are made, and what is left are steps.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    check::Known,
    step::{Line, Step},
};
use crate::{Spec, duration, machines};

/// Maximum number of steps: nested loops soon take longer than anybody waits.
const MAX_STEPS: usize = 10_000;

/// A step with its line in the file.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub line: usize,
    /// The step's text, with random choices made.
    pub text: String,
    pub step: Step,
}

/// Lines of a file with their numbers.
pub(super) type Lines<'a> = &'a [(usize, &'a str)];

/// Reads lines into steps.
pub(super) struct Reader {
    random: SmallRng,
    variables: BTreeMap<String, String>,
    known: Known,
    steps: Vec<Placed>,
}

impl Reader {
    pub fn new(spec: Spec, seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self { random, variables: BTreeMap::new(), known: Known::new(spec), steps: Vec::new() }
    }

    /// Reads all lines of a scenario.
    pub fn read(mut self, lines: Lines<'_>) -> Result<Vec<Placed>> {
        let rest = self.block(lines, false)?;
        ensure!(rest.is_empty(), "line {}: an `end` without `each` or `repeat`", rest[0].0);
        Ok(self.steps)
    }

    /// Reads lines up to the `end` of a block, and returns those after it.
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

    /// Replaces `{name}` by the value of that variable.
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

    /// The words to choose from; sets of machines are expanded.
    fn names(&self, words: &[&str]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for word in words {
            match machines::parse(self.known.spec(), word) {
                Ok(machines) => names.extend(machines),
                Err(_) => names.push((*word).to_owned()),
            }
        }
        ensure!(!names.is_empty(), "nothing to choose from");
        Ok(names)
    }

    /// A time of a range like `1s..5s`.
    fn random_time(&mut self, range: &str) -> Result<String> {
        let (least, most) = range.split_once("..").context("a range has two ends")?;
        let [least, most] = [least, most].map(duration::parse);
        let (least, most) = (least.map_err(anyhow::Error::msg)?, most.map_err(anyhow::Error::msg)?);
        ensure!(least <= most, "a range goes from less to more");
        let drawn = self.random.random_range(least.as_millis() as u64..=most.as_millis() as u64);
        Ok(format!("{drawn}ms"))
    }

    fn step(&mut self, line: usize, text: &str, words: &[&str]) -> Result<()> {
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut text = text.to_owned();
        if words.len() == 2 && words[0] == "wait" && words[1].contains("..") {
            words[1] = self.random_time(&words[1])?;
            text = words.join(" ");
        }
        let step = match Line::try_parse_from(&words) {
            Ok(line) => line.step,
            Err(error) => {
                // The first part is the error; the rest is a usage text for programs.
                let message = error.to_string();
                let message = message.split("\n\nUsage").next().unwrap_or_default();
                bail!("{}", message.trim_start_matches("error: ").trim())
            }
        };
        self.known.check(&step)?;
        self.steps.push(Placed { line, text, step });
        Ok(())
    }
}

/// Splits a line into words, with double quotes around those that contain spaces.
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
