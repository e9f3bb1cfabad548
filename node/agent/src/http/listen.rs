//! The listening sockets of API and metrics.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::unistd::Group;
use tokio::net::{TcpListener, UnixListener};

use super::{App, metrics, router};

/// The API's socket in the run folder.
pub const SOCKET_NAME: &str = "warren.sock";

/// Listens on `<run_dir>/warren.sock`, mode 0660, of the group if it exists. A socket that a previous agent left there is
/// removed: the caller holds the folder's lock, so nothing listens on it.
///
/// # Errors
/// When the socket cannot be bound.
pub fn bind_socket(run_dir: &Path, group: &str) -> anyhow::Result<(UnixListener, PathBuf)> {
    let path = run_dir.join(SOCKET_NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    let gid = Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw());
    chown(&path, None, gid).with_context(|| format!("give {} to group {group}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
    Ok((listener, path))
}

/// Listens for metrics and health.
///
/// # Errors
/// When the address cannot be bound; the text names the setting.
pub async fn bind_metrics(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen for metrics on {address}; http.metrics_listen sets another address"))
}

/// Serves the API until the agent stops.
///
/// # Errors
/// When accepting fails for good.
pub async fn serve_api(listener: UnixListener, app: App) -> io::Result<()> {
    let stop = app.stop.clone();
    axum::serve(listener, router(app)).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Serves metrics and health until the agent stops.
///
/// # Errors
/// When accepting fails for good.
pub async fn serve_metrics(listener: TcpListener, app: App) -> io::Result<()> {
    let stop = app.stop.clone();
    axum::serve(listener, metrics::router(app)).with_graceful_shutdown(stop.cancelled_owned()).await
}
