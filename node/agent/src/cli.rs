//! The command line, made from the table of settings, so that no flag can be missing.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};

use crate::config::{self, Config, DEFAULT_PATH, Mistake, Mistakes, Override, SETTINGS};

/// What the command line requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run the agent.
    Run(Config),
    /// Validate and show the configuration.
    Check {
        /// The configuration.
        config: Config,
        /// Show it as JSON.
        json: bool,
    },
    /// Remove everything of Warren's from this node's kernel.
    Cleanup {
        /// The configuration.
        config: Config,
        /// Only print what would be done.
        dry_run: bool,
    },
    /// Make a gossip key.
    Keygen {
        /// The file to create.
        path: PathBuf,
    },
    /// Print the API's description.
    Openapi,
}

/// The grammar.
pub fn command() -> Command {
    let config = Arg::new("config")
        .long("config")
        .env("WARREN_CONFIG")
        .value_name("FILE")
        .help(format!("Configuration file [default: {DEFAULT_PATH}, if it is there]"))
        .value_parser(clap::value_parser!(PathBuf))
        .global(true);
    let settings = SETTINGS.iter().map(|setting| {
        Arg::new(setting.key)
            .long(setting.flag())
            .env(setting.variable())
            .value_name("VALUE")
            .help(setting.help)
            .hide_env(true)
            .help_heading("Settings (each also a key in the file and a variable WARREN_...)")
            .global(true)
    });
    Command::new("warrend")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The agent of a Warren node.")
        .arg(config)
        .args(settings)
        .subcommand(Command::new("run").about("Run the agent (what happens without a command)"))
        .subcommand(
            Command::new("check").about("Validate the configuration and show what is in effect").arg(
                Arg::new("output")
                    .short('o')
                    .long("output")
                    .value_parser(["toml", "json"])
                    .default_value("toml")
                    .help("Form of the answer"),
            ),
        )
        .subcommand(
            Command::new("cleanup")
                .about("Take away devices, routes, programs and maps of ours on this node, and nothing else")
                .arg(
                    Arg::new("dry-run")
                        .long("dry-run")
                        .action(ArgAction::SetTrue)
                        .help("Only say what would be done"),
                ),
        )
        .subcommand(Command::new("keygen").about("Make a file with a new gossip key, for root only").arg(
            Arg::new("path").required(true).value_name("FILE").value_parser(clap::value_parser!(PathBuf)),
        ))
        .subcommand(Command::new("openapi").about("Print the description of the API (OpenAPI, JSON)"))
}

/// The action that the arguments request.
///
/// # Errors
/// [`Mistakes`] of the configuration, or a configuration file that cannot be read.
pub fn action(matches: &ArgMatches) -> anyhow::Result<Action> {
    let (name, matches) = matches.subcommand().unwrap_or(("run", matches));
    Ok(match name {
        "keygen" => Action::Keygen { path: matches.get_one::<PathBuf>("path").expect("is required").clone() },
        "openapi" => Action::Openapi,
        "check" => Action::Check {
            config: load(matches)?,
            json: matches.get_one::<String>("output").is_some_and(|output| output == "json"),
        },
        "cleanup" => Action::Cleanup { config: load(matches)?, dry_run: matches.get_flag("dry-run") },
        _ => Action::Run(load(matches)?),
    })
}

fn load(matches: &ArgMatches) -> anyhow::Result<Config> {
    let named = matches.get_one::<PathBuf>("config");
    let path = named.map_or(Path::new(DEFAULT_PATH), PathBuf::as_path);
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => None,
        Err(error) => {
            return Err(error).with_context(|| format!("read configuration file {}", path.display()));
        }
    };
    let overrides: Vec<Override> = SETTINGS
        .iter()
        .filter_map(|setting| {
            let text = matches.get_one::<String>(setting.key)?.clone();
            let place = match matches.value_source(setting.key) {
                Some(ValueSource::EnvVariable) => setting.variable(),
                _ => format!("--{}", setting.flag()),
            };
            Some(Override { key: setting.key, place, text })
        })
        .collect();
    let loaded = config::load(text.as_deref().map(|text| (path, text)), &overrides);
    let mut mistakes = match &loaded {
        Ok(_) => Vec::new(),
        Err(Mistakes(mistakes)) => mistakes.clone(),
    };
    mistakes.extend(unknown_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())));
    if mistakes.is_empty() { Ok(loaded?) } else { Err(Mistakes(mistakes).into()) }
}

/// Variables with the prefix that are no settings: those of `warren` and `warren-lab`, and the path of the file.
const OTHER_VARIABLES: [&str; 3] = ["WARREN_CONFIG", "WARREN_SOCKET", "WARREN_LAB"];

/// Reports variables that name no setting: a misspelt one must not be ignored silently.
fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<Mistake> {
    let known = |name: &str| {
        OTHER_VARIABLES.contains(&name) || SETTINGS.iter().any(|setting| setting.variable() == name)
    };
    names
        .filter(|name| name.starts_with("WARREN_") && !known(name))
        .map(|name| Mistake {
            place: name,
            key: String::new(),
            text: "no such setting; `warrend --help` lists them (the variable of --etcd-endpoints is WARREN_ETCD_ENDPOINTS)"
                .to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_valid() {
        command().debug_assert();
    }

    #[test]
    fn variable_that_names_no_setting_is_a_mistake() {
        let names = ["PATH", "WARREN_CONFIG", "WARREN_ETCD_ENDPOINTS", "WARREN_ETCD_ENDPOINT"];
        let mistakes = unknown_variables(names.iter().map(|name| (*name).to_owned()));
        assert_eq!(
            mistakes.iter().map(|mistake| mistake.place.as_str()).collect::<Vec<_>>(),
            ["WARREN_ETCD_ENDPOINT"]
        );
    }

    #[test]
    fn flags_are_accepted_before_and_after_the_command() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[node]\nname = \"file\"").unwrap();
        let path = file.path().to_str().unwrap();
        for arguments in [
            ["--config", path, "--node-name", "flag", "check"],
            ["check", "--config", path, "--node-name", "flag"],
        ] {
            let matches = command().get_matches_from(std::iter::once("warrend").chain(arguments));
            let Action::Check { config, json: false } = action(&matches).unwrap() else {
                panic!("is a check")
            };
            assert_eq!(config.node.name.unwrap().as_str(), "flag");
        }
    }

    #[test]
    fn configuration_file_that_is_named_must_exist() {
        let matches = command().get_matches_from(["warrend", "--config", "/nonexistent/warren.toml"]);
        let error = format!("{:#}", action(&matches).unwrap_err());
        assert!(error.contains("/nonexistent/warren.toml"), "{error}");
    }
}
