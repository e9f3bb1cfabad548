//! `apply`, `get`, `diff`, `delete`: manifests are read, and sent to or compared with the agent.
//!
//! Nothing here depends on the kind of an object: node-api's registry has the kinds.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use identity::ObjectName;
use node_api::{
    ApiError, Client, ClientError, ErrorKind, KindName, Listing, Manifest, Manifests, RevisionQuery,
};
use similar::{ChangeTag, TextDiff};
use tokio::task::JoinSet;

use crate::{
    Printer, files,
    progress::Progress,
    render::{self, Deletion, Difference},
};

/// The maximum number of concurrent requests: the agent writes some 40 services in a transaction, and has four transactions
/// under way.
const MAX_CONCURRENT: usize = 256;

/// The number of consecutive answers "unavailable" after which the remaining requests are not sent: the cause is the store,
/// not the objects.
const MAX_UNAVAILABLE: usize = 10;

/// Reads manifests and reports the mistakes in them. Returns the manifests, and whether there was no mistake; or the exit
/// code, if there is no manifest.
fn read(paths: &[PathBuf]) -> Result<(Vec<Manifest>, bool), ExitCode> {
    let Manifests { manifests, mistakes } = files::read(paths);
    for mistake in &mistakes {
        eprintln!("warren: {mistake}");
    }
    let valid = mistakes.is_empty();
    if manifests.is_empty() { Err(exit_code(valid, true)) } else { Ok((manifests, valid)) }
}

/// The result of [`request_all`].
struct Answers<T> {
    /// The answers, in the order of the requests.
    answers: Vec<T>,
    /// Whether every request succeeded.
    complete: bool,
}

/// Sends one request for each item, many concurrently. A rejected request is reported at once, and the others go on. If the
/// agent or the store does not answer, or the user interrupts, the rest is not sent, and the progress is reported.
async fn request_all<I: Send + 'static, T: Send + 'static, F>(
    items: Vec<(KindName, ObjectName, I)>,
    request: impl Fn(KindName, ObjectName, I) -> F,
) -> Result<Answers<T>>
where
    F: Future<Output = Result<T, ClientError>> + Send + 'static,
{
    let total = items.len();
    let mut waiting = items.into_iter().enumerate();
    let mut running = JoinSet::new();
    let mut answers: Vec<Option<T>> = (0..total).map(|_| None).collect();
    let (mut rejected, mut unavailable) = (0, 0);
    let mut progress = Progress::new(total);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let stopped = loop {
        while running.len() < MAX_CONCURRENT {
            let Some((index, (kind, name, item))) = waiting.next() else { break };
            let answer = request(kind, name.clone(), item);
            running.spawn(async move { (index, kind, name, answer.await) });
        }
        let done = tokio::select! {
            done = running.join_next() => done,
            signal = &mut interrupted => {
                signal.context("wait for Ctrl-C")?;
                break Some("interrupted".to_owned());
            }
        };
        let Some(done) = done else { break None };
        let (index, kind, name, answer) = done?;
        progress.step();
        match answer {
            Ok(answer) => {
                answers[index] = Some(answer);
                unavailable = 0;
            }
            Err(ClientError::Refused(error)) => {
                progress.print(&format!("warren: {} {name}: {error}", kind.word()));
                rejected += 1;
                unavailable += usize::from(error.kind == ErrorKind::Unavailable);
                if unavailable == MAX_UNAVAILABLE && rejected < total {
                    break Some("the store is unavailable".to_owned());
                }
            }
            Err(error) => break Some(format!("{:#}", anyhow::Error::from(error))),
        }
    };
    drop(progress);
    let answers: Vec<T> = answers.into_iter().flatten().collect();
    if let Some(reason) = &stopped {
        let open = total - answers.len() - rejected;
        eprintln!("warren: {reason}");
        if total > 1 {
            eprintln!(
                "warren: {} of {total} done, {rejected} rejected, {open} not done or unknown: repeat the command",
                answers.len()
            );
        }
    }
    Ok(Answers { answers, complete: stopped.is_none() && rejected == 0 })
}

/// Mistakes in manifests are wrong usage, although the valid manifests were used.
fn exit_code(valid: bool, complete: bool) -> ExitCode {
    match (valid, complete) {
        (false, _) => ExitCode::from(2),
        (true, false) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
    }
}

/// Writes the objects that manifests describe.
pub async fn apply(client: &Client, out: &Printer, paths: &[PathBuf]) -> Result<ExitCode> {
    let (manifests, valid) = match read(paths) {
        Ok(read) => read,
        Err(code) => return Ok(code),
    };
    let answers = request_all(with_keys(manifests), |_, _, manifest| {
        let client = client.clone();
        async move { client.object_put(manifest).await }
    })
    .await?;
    out.print(&Listing::new(answers.answers, None), render::applied)?;
    Ok(exit_code(valid, answers.complete))
}

fn with_keys(manifests: Vec<Manifest>) -> Vec<(KindName, ObjectName, Manifest)> {
    manifests.into_iter().map(|manifest| (manifest.spec.kind(), manifest.name.clone(), manifest)).collect()
}

/// Deletes one named object, or the objects that manifests name.
pub async fn delete(
    client: &Client,
    out: &Printer,
    named: Option<(KindName, ObjectName)>,
    paths: &[PathBuf],
) -> Result<ExitCode> {
    let (keys, valid) = match named {
        Some((kind, name)) => (vec![(kind, name, ())], true),
        None => match read(paths) {
            Ok((manifests, valid)) => {
                (manifests.into_iter().map(|it| (it.spec.kind(), it.name, ())).collect(), valid)
            }
            Err(code) => return Ok(code),
        },
    };
    let answers = request_all(keys, |kind, name, ()| {
        let client = client.clone();
        async move {
            let answer = client.object_delete(kind, &name, &RevisionQuery::default()).await?;
            Ok(Deletion { kind, name, existed: answer.existed })
        }
    })
    .await?;
    out.print(&Listing::new(answers.answers, None), render::deleted)?;
    Ok(exit_code(valid, answers.complete))
}

/// The manifest of an object as it is in etcd; `None` if the object does not exist.
async fn current(
    client: &Client,
    kind: KindName,
    name: &ObjectName,
) -> Result<Option<Manifest>, ClientError> {
    match client.object(kind, name).await {
        Ok(object) => Ok(Some(object.into())),
        Err(ClientError::Refused(ApiError { kind: ErrorKind::NotFound, .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Shows what `apply` would change.
pub async fn diff(client: &Client, out: &Printer, paths: &[PathBuf]) -> Result<ExitCode> {
    let (manifests, valid) = match read(paths) {
        Ok(read) => read,
        Err(code) => return Ok(code),
    };
    let answers: Answers<Difference> = request_all(with_keys(manifests), |kind, name, wanted| {
        let client = client.clone();
        async move {
            let current = current(&client, kind, &name).await?;
            let before = current.map(|manifest| manifest.to_yaml()).unwrap_or_default();
            Ok(Difference { kind, name, lines: diff_lines(&before, &wanted.to_yaml()) })
        }
    })
    .await?;
    let equal = answers.answers.iter().all(|difference| difference.lines.is_empty());
    if valid && answers.complete || !equal || out.json {
        out.print(&Listing::new(answers.answers, None), render::differences)?;
    }
    Ok(exit_code(valid, answers.complete && equal))
}

/// Shows the objects of a kind as a table, or as manifests: all of them for programs, one for human readers.
pub async fn get(client: &Client, out: &Printer, kind: KindName, name: Option<ObjectName>) -> Result<()> {
    match name {
        None => {
            let objects = client.objects(kind).await?;
            if out.json {
                let manifests = objects.items.into_iter().map(Manifest::from).collect();
                return out.print(&Listing::new(manifests, None), |_, _| String::new());
            }
            out.print(&objects, |objects, _| render::objects(kind, objects))
        }
        Some(name) => {
            let manifest = Manifest::from(client.object(kind, &name).await?);
            out.print(&manifest, |manifest, _| manifest.to_yaml())
        }
    }
}

/// The lines of [`Difference`].
fn diff_lines(before: &str, after: &str) -> Vec<String> {
    if before == after {
        return Vec::new();
    }
    let diff = TextDiff::from_lines(before, after);
    let line = |change: similar::Change<&str>| {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        format!("{sign} {}", change.value().trim_end_matches('\n'))
    };
    diff.iter_all_changes().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diff_shows_removed_and_added_lines_among_common_ones() {
        let check = |before: &str, after: &str, expected: &[&str]| {
            assert_eq!(diff_lines(before, after), expected, "{before:?} {after:?}");
        };
        check("a\nb\n", "a\nb\n", &[]);
        check("", "a\nb\n", &["+ a", "+ b"]);
        check("a\nb\nc\n", "a\nc\nd\n", &["  a", "- b", "  c", "+ d"]);
        check("port: 80\n", "port: 81\n", &["- port: 80", "+ port: 81"]);
    }
}
