//! The agent: reads its configuration, then runs, checks or cleans up.
//!
//! It is a library so that its decoders (configuration, snapshot, endpoint files) can be tested and fuzzed from outside.

mod check;
mod cleanup;
mod cli;
pub mod config;
pub mod endpoints;
mod heap;
mod http;
mod keygen;
mod lock;
mod logging;
mod machine;
mod metrics;
mod parts;
mod preflight;
mod recorder;
mod run;
pub mod sealed;
mod shell;
pub mod snapshot;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use cli::Action;

/// The whole program, from its arguments to its exit.
pub fn main() -> ExitCode {
    heap::keep_small();
    let matches = cli::command().get_matches();
    match cli::action(&matches).and_then(carry_out) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("warrend: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(action: Action) -> anyhow::Result<ExitCode> {
    match action {
        Action::Run(config) => {
            logging::init(config.log);
            runtime()?.block_on(run::run(config))?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Check { config, json } => {
            if json {
                print(&format!("{:#}", config::to_json(&config)))?;
            } else {
                print(config::render(&config).trim())?;
            }
            let problems = check::problems(&config);
            for problem in &problems {
                eprintln!("warrend: {problem}");
            }
            Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Action::Cleanup { config, dry_run } => runtime()?.block_on(cleanup::cleanup(&config, dry_run)),
        Action::Keygen { path } => {
            keygen::keygen(&path)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Openapi => {
            print(&http::openapi().to_pretty_json()?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Prints a text. A reader that has closed its end (`| head`) is no error.
fn print(text: &str) -> io::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
