//! Telling others that this process is there: a file for programs, a wait for the whole path.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use phalanx_chassis::config::Resolved;
use serde_json::Value;

use crate::failure::Failure;
use crate::http_client::HttpClient;
use crate::settings;

/// Between two looks at a router that is not ready: short against what people notice.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the path from router to worker may take to come up once all of it listens: an election takes
/// at most 2 s and a registration as long again; the rest is for slow disks.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long one look may take.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Keeps `--ready-file` true: what a process before left there is removed before anything else happens, and
/// what this one wrote is removed when it ends.
#[derive(Debug)]
pub(crate) struct ReadyFile(Option<PathBuf>);

/// Writes `--ready-file`, if one was asked for. Whoever sees the file sees all of it.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_ready_file(resolved: &Resolved, addresses: &Value) -> Result<(), Failure> {
    let Some(path) = resolved.text(&settings::READY_FILE).map(Path::new) else { return Ok(()) };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    std::fs::write(&unfinished, addresses.to_string())
        .and_then(|()| std::fs::rename(&unfinished, path))
        .map_err(|error| {
            Failure::Failed(format!("cannot write the ready file {}: {error}", path.display()))
        })
}

// === impl ReadyFile ===

impl ReadyFile {
    /// Removes what is there, if a ready file was asked for.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub(crate) fn claim(resolved: &Resolved) -> Result<Self, Failure> {
        let Some(path) = resolved.text(&settings::READY_FILE).map(PathBuf::from) else {
            return Ok(Self(None));
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::Failed(format!(
                "cannot remove the old ready file {}: {error}",
                path.display()
            ))),
            Ok(()) | Err(_) => Ok(Self(Some(path))),
        }
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may never have been written, and there is nobody left to tell.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Waits until the router at `url` can serve a request, and reaches all of its `workers`.
///
/// # Errors
/// When it cannot for too long.
pub(crate) async fn wait_until_ready(url: &str, workers: usize) -> Result<(), Failure> {
    let client = HttpClient::new(url);
    let ready = async {
        loop {
            let answer = client.get("/health/ready", LOOK_MAX).await;
            let is_ready = answer.is_ok_and(|answer| answer.status().is_success());
            if is_ready && workers_up(&client).await.is_some_and(|up| up >= workers) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(READY_MAX, ready).await.map_err(|_elapsed| {
        Failure::Failed(format!("nothing was ready to serve within {} s", READY_MAX.as_secs()))
    })
}

/// How many workers the router says it reaches.
async fn workers_up(client: &HttpClient) -> Option<usize> {
    let answer = client.get("/metrics", LOOK_MAX).await.ok()?;
    let metrics = client.read(answer, LOOK_MAX).await.ok()?;
    let line = |line: &str| line.strip_prefix("phalanx_workers_up ")?.trim().parse().ok();
    std::str::from_utf8(&metrics).ok()?.lines().find_map(line)
}
