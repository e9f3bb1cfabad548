//! The etcd program of the tests: its path, its version, and how it is started.

use std::{
    env,
    ffi::OsString,
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Once,
};

/// The path of the etcd to test with; the default is `etcd` in the `PATH`.
const VARIABLE: &str = "WARREN_ETCD";

/// How often a member tells a quiet watch its revision: 10 min by default, longer than a test may wait.
const PROGRESS_INTERVAL: &str = "500ms";
/// Both names of that setting: until 3.5, and since 3.6.
const PROGRESS_VARIABLES: [&str; 2] =
    ["ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL", "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL"];

/// Whether tests with etcd must be skipped; prints the reason.
///
/// # Panics
/// When `WARREN_ETCD` names an etcd that does not run.
pub fn missing() -> bool {
    let why = match version() {
        Ok(version) => {
            announce(&version);
            return false;
        }
        Err(why) => why,
    };
    assert!(env::var_os(VARIABLE).is_none(), "{VARIABLE}={}: {why}", program().display());
    println!("skipped: etcd --version: {why} (deploy/setup.sh installs etcd)");
    true
}

fn program() -> OsString {
    env::var_os(VARIABLE).unwrap_or_else(|| "etcd".into())
}

/// The program's version, as `3.5.16`.
///
/// # Errors
/// The program does not exist, does not run, or is no etcd.
pub fn version() -> Result<String, String> {
    let output = Command::new(program()).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(|line| line.strip_prefix("etcd Version: ")) {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => Err(format!("{}, and no version: {text:?}", output.status)),
    }
}

/// Prints the version once per process. Not with `println!`, whose output libtest shows for failed tests only.
fn announce(version: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without standard error the version is not printed.
        let _ = writeln!(std::io::stderr(), "etcd {version} ({})", program().display());
    });
}

/// Starts a member that ends with the calling thread, and writes to `log`.
///
/// # Panics
/// When it cannot be started.
pub(super) fn spawn(args: &[String], log: &Path) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("open the member's log");
    let mut command = Command::new(program());
    // etcd reads ETCD_* variables, so the environment is cleared.
    command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // As variables, since etcd only warns of those that its version does not know.
    for variable in PROGRESS_VARIABLES {
        command.env(variable, PROGRESS_INTERVAL);
    }
    if let Some(path) = env::var_os("PATH") {
        command.env("PATH", path);
    }
    let die_with_parent = || {
        // SAFETY: prctl(2) with plain numbers is safe between fork and exec. The signal comes at the end of the spawning
        // *thread*, which is the test's own.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one async-signal-safe call and allocates nothing.
    unsafe { command.pre_exec(die_with_parent) };
    command.spawn().expect("start etcd")
}
