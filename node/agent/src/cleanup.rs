//! `warrend cleanup`: removes everything of Warren's from this node's kernel, and nothing else.

use std::{fs, io, process::ExitCode};

use datapath_linux::LinuxConfig;

use crate::{config::Config, http::SOCKET_NAME, lock::RUN_LOCK};

/// Prints each step that is done, or would be, and goes on past failures. The state folder stays, since the incarnation in
/// it must not be forgotten.
///
/// # Errors
/// While an agent runs, and when the kernel cannot be read at all.
pub async fn cleanup(config: &Config, dry_run: bool) -> anyhow::Result<ExitCode> {
    let pin_root = &config.datapath.pin_root;
    let steps = datapath_linux::cleanup(&LinuxConfig::at(pin_root), dry_run).await?;
    let mut failed = 0;
    for step in &steps {
        match &step.error {
            Some(error) => {
                failed += 1;
                eprintln!("failed {}: {error}", step.what);
            }
            None if dry_run => println!("would remove {}", step.what),
            None => println!("removed {}", step.what),
        }
    }
    if !dry_run {
        for path in [SOCKET_NAME, RUN_LOCK].map(|name| config.node.run_dir.join(name)) {
            match fs::remove_file(&path) {
                Ok(()) => println!("removed {}", path.display()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    failed += 1;
                    eprintln!("failed {}: {error}", path.display());
                }
            }
        }
    }
    if steps.is_empty() {
        println!("nothing to remove");
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
