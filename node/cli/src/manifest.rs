//! `apply`, `get`, `diff`, `delete`: manifests on their way to the agent and back.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use identity::ServiceName;
use node_api::{
    ApiError, Client, ClientError, ErrorKind, Listing, Manifest, Manifests, RevisionQuery, ServicePut,
    ServiceWritten,
};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{Printer, files, progress::Progress, render};

/// Requests under way at once: the agent writes some 40 services in a transaction, and has four of these under way.
const AT_ONCE: usize = 256;

/// So many refusals in a row for want of the store are no affair of single services.
const ENOUGH: usize = 10;

/// What came of one manifest.
#[derive(Debug, Serialize)]
pub struct Deleted {
    /// Its name.
    pub name: ServiceName,
    /// Whether it had been there.
    pub existed: bool,
}

/// One manifest beside what is there.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// Its name.
    pub name: ServiceName,
    /// Lines that would go (`-`) and come (`+`), among those that stay; empty when nothing would change.
    pub lines: Vec<String>,
}

/// Reads manifests and tells the mistakes in them; also, whether there was none. Where nothing else is there, that is the end.
fn read(paths: &[PathBuf]) -> Result<(Vec<Manifest>, bool), ExitCode> {
    let Manifests { manifests, mistakes } = files::read(paths);
    for mistake in &mistakes {
        eprintln!("warren: {mistake}");
    }
    let sound = mistakes.is_empty();
    if manifests.is_empty() { Err(code(sound, true)) } else { Ok((manifests, sound)) }
}

/// What came of many questions.
struct Asked<T> {
    /// The answers, in the order of the questions.
    answers: Vec<T>,
    /// Whether all were asked, and none refused.
    whole: bool,
}

/// Asks for each of `items`, many at once. What was refused is told at once, and the others go on; unless nobody is there to
/// answer, or the user has had enough: then it is told how far things have come.
async fn ask_all<I: Send + 'static, T: Send + 'static, F>(
    items: Vec<(ServiceName, I)>,
    ask: impl Fn(ServiceName, I) -> F,
) -> Result<Asked<T>>
where
    F: Future<Output = Result<T, ClientError>> + Send + 'static,
{
    let total = items.len();
    let mut waiting = items.into_iter().enumerate();
    let mut running = JoinSet::new();
    let mut answers: Vec<Option<T>> = (0..total).map(|_| None).collect();
    let (mut refused, mut unavailable) = (0, 0);
    let mut progress = Progress::new(total);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let stopped = loop {
        while running.len() < AT_ONCE {
            let Some((index, (name, item))) = waiting.next() else { break };
            let asked = ask(name.clone(), item);
            running.spawn(async move { (index, name, asked.await) });
        }
        let done = tokio::select! {
            done = running.join_next() => done,
            signal = &mut interrupted => {
                signal.context("wait for Ctrl-C")?;
                break Some("interrupted".to_owned());
            }
        };
        let Some(done) = done else { break None };
        let (index, name, answer) = done?;
        progress.step();
        match answer {
            Ok(answer) => {
                answers[index] = Some(answer);
                unavailable = 0;
            }
            Err(ClientError::Refused(error)) => {
                progress.tell(&format!("warren: service {name}: {error}"));
                refused += 1;
                unavailable += usize::from(error.kind == ErrorKind::Unavailable);
                if unavailable == ENOUGH && refused < total {
                    break Some("the store is away".to_owned());
                }
            }
            Err(error) => break Some(format!("{:#}", anyhow::Error::from(error))),
        }
    };
    drop(progress);
    let answers: Vec<T> = answers.into_iter().flatten().collect();
    if let Some(reason) = &stopped {
        let left = total - answers.len() - refused;
        eprintln!("warren: {reason}");
        if total > 1 {
            eprintln!(
                "warren: {} of {total} are done, {refused} were refused; {left} are not done, or it is not known: do it again",
                answers.len()
            );
        }
    }
    Ok(Asked { answers, whole: stopped.is_none() && refused == 0 })
}

/// Mistakes in manifests are wrong usage; the others were taken.
fn code(sound: bool, whole: bool) -> ExitCode {
    match (sound, whole) {
        (false, _) => ExitCode::from(2),
        (true, false) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
    }
}

/// Writes what manifests describe.
pub async fn apply(client: &Client, out: &Printer, paths: &[PathBuf]) -> Result<ExitCode> {
    let (manifests, sound) = match read(paths) {
        Ok(read) => read,
        Err(code) => return Ok(code),
    };
    let items = manifests.into_iter().map(|manifest| (manifest.metadata.name, manifest.spec)).collect();
    let asked: Asked<ServiceWritten> = ask_all(items, |name, spec| {
        let client = client.clone();
        async move { client.service_put(&name, &ServicePut { spec, revision: None }).await }
    })
    .await?;
    out.print(&Listing::new(asked.answers, None), render::applied)?;
    Ok(code(sound, asked.whole))
}

/// Deletes what is named, or what manifests name.
pub async fn delete(
    client: &Client,
    out: &Printer,
    named: Option<ServiceName>,
    paths: &[PathBuf],
) -> Result<ExitCode> {
    let (names, sound): (Vec<ServiceName>, bool) = match named {
        Some(name) => (vec![name], true),
        None => match read(paths) {
            Ok((manifests, sound)) => {
                (manifests.into_iter().map(|manifest| manifest.metadata.name).collect(), sound)
            }
            Err(code) => return Ok(code),
        },
    };
    let items = names.into_iter().map(|name| (name, ())).collect();
    let asked: Asked<Deleted> = ask_all(items, |name, ()| {
        let client = client.clone();
        async move {
            let answer = client.service_delete(&name, &RevisionQuery::default()).await?;
            Ok(Deleted { name, existed: answer.existed })
        }
    })
    .await?;
    out.print(&Listing::new(asked.answers, None), render::deleted)?;
    Ok(code(sound, asked.whole))
}

/// The manifest of a name as it is now.
async fn current(client: &Client, name: &ServiceName) -> Result<Option<Manifest>, ClientError> {
    match client.service(name).await {
        Ok(service) => Ok(Some(Manifest::service(service.name, service.spec))),
        Err(ClientError::Refused(ApiError { kind: ErrorKind::NotFound, .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Shows what `apply` would change.
pub async fn diff(client: &Client, out: &Printer, paths: &[PathBuf]) -> Result<ExitCode> {
    let (manifests, sound) = match read(paths) {
        Ok(read) => read,
        Err(code) => return Ok(code),
    };
    let items = manifests.into_iter().map(|manifest| (manifest.metadata.name.clone(), manifest)).collect();
    let asked: Asked<Difference> = ask_all(items, |name, wanted| {
        let client = client.clone();
        async move {
            let there = current(&client, &name).await?;
            let before = there.map(|manifest| manifest.to_yaml()).unwrap_or_default();
            Ok(Difference { name, lines: changed_lines(&before, &wanted.to_yaml()) })
        }
    })
    .await?;
    let equal = asked.answers.iter().all(|difference| difference.lines.is_empty());
    if sound && asked.whole || !equal || out.json {
        out.print(&Listing::new(asked.answers, None), render::differences)?;
    }
    Ok(code(sound, asked.whole && equal))
}

/// Shows what is there: a list of all, or a manifest.
pub async fn get(client: &Client, out: &Printer, name: Option<ServiceName>) -> Result<()> {
    match name {
        None => {
            let services = client.services().await?;
            if !out.json {
                return out.print(&services, render::services);
            }
            let manifests =
                services.items.into_iter().map(|service| Manifest::service(service.name, service.spec));
            out.print(&Listing::new(manifests.collect(), None), |_: &Listing<Manifest>, _| String::new())
        }
        Some(name) => {
            let service = client.service(&name).await?;
            let manifest = Manifest::service(service.name, service.spec);
            out.print(&manifest, |manifest, _| manifest.to_yaml())
        }
    }
}

/// All lines of both texts, with `-` before those of the first alone and `+` before those of the second alone; nothing
/// when they are equal. By the longest common subsequence: manifests are short.
fn changed_lines(before: &str, after: &str) -> Vec<String> {
    if before == after {
        return Vec::new();
    }
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let mut common = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] =
                if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push(format!("  {}", a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(format!("- {}", a[i]));
            i += 1;
        } else {
            lines.push(format!("+ {}", b[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_and_what_comes_stands_among_what_stays() {
        let check = |before: &str, after: &str, expected: &[&str]| {
            assert_eq!(changed_lines(before, after), expected, "{before:?} {after:?}");
        };
        check("a\nb\n", "a\nb\n", &[]);
        check("", "a\nb\n", &["+ a", "+ b"]);
        check("a\nb\nc\n", "a\nc\nd\n", &["  a", "- b", "  c", "+ d"]);
        check("port: 80\n", "port: 81\n", &["- port: 80", "+ port: 81"]);
    }
}
