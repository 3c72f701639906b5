//! One `phalanx` process: started with a ready file, ended on every path, its log shown when a test fails.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::network::Host;

/// How long a process may take to load the model and listen, on a busy machine and without optimisation.
pub const START_MAX: Duration = Duration::from_secs(60);
/// Between two looks at a file or a child: short against what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How much of a log a failed test shows.
const LOG_BYTES_SHOWN: u64 = 16 << 10;

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ready_file: PathBuf,
}

/// The folder that Cargo puts this build's binaries in.
///
/// # Errors
/// When the binary has not been built.
pub fn phalanx_binary() -> Result<PathBuf> {
    // A test lies in `deps`, beside which the binaries are.
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("a test lies in target/*/deps")?;
    let binary = folder.join("phalanx");
    ensure!(binary.is_file(), "{} is missing: `make test` builds it", binary.display());
    Ok(binary)
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

// === impl Process ===

impl Process {
    /// Starts `phalanx` with `arguments`; `folder` takes its log and its ready file, both named `name`.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(folder: &Path, name: &str, arguments: &[String]) -> Result<Self> {
        Self::start_on(None, folder, name, arguments)
    }

    /// As [`Self::start`], on a host of a network, or on this machine.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start_on(
        host: Option<&Host>,
        folder: &Path,
        name: &str,
        arguments: &[String],
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let ready_file = folder.join(format!("{name}.ready"));
        if ready_file.exists() {
            std::fs::remove_file(&ready_file)?; // of the process that this one replaces
        }
        let output = File::options().create(true).append(true).open(&log)?;
        let program = phalanx_binary()?;
        let child = host
            .map_or_else(|| Command::new(&program), |host| host.command(&program))
            .args(arguments)
            .arg("--ready-file")
            .arg(&ready_file)
            .current_dir(repository())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log, ready_file })
    }

    /// The system's id of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the process listens, and gives the addresses it wrote to its ready file.
    ///
    /// # Errors
    /// When it ends instead, or takes too long.
    pub async fn addresses(&mut self) -> Result<Value> {
        let deadline = Instant::now() + START_MAX;
        loop {
            if self.ready_file.exists() {
                return Ok(serde_json::from_str(&std::fs::read_to_string(&self.ready_file)?)?);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before it listened", self.name);
            }
            ensure!(Instant::now() < deadline, "{} does not listen after {START_MAX:?}", self.name);
            sleep(LOOK_EVERY).await;
        }
    }

    /// Ends the process as a crash does: SIGKILL, no warning.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn crash(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the process to end: SIGTERM.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn ask_to_end(&self) -> Result<()> {
        self.signal("TERM")
    }

    /// Stops the process without a word to its peers: SIGSTOP. Its connections stay open, and silent.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn pause(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets a paused process go on: SIGCONT.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn go_on(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let command = format!("kill -{signal} {}", self.child.id());
        let sent = Command::new("sh").arg("-c").arg(command).status()?;
        ensure!(sent.success(), "cannot send SIG{signal} to {}: {sent}", self.name);
        Ok(())
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// When it is still there after `within`.
    pub async fn exit(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} still runs after {within:?}", self.name);
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether the process still runs.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Everything the process printed.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn output(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    fn log_end(&self) -> std::io::Result<String> {
        let mut log = File::open(&self.log)?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_SHOWN)))?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Process {
    #[expect(
        clippy::print_stderr,
        reason = "the log of a failed test belongs to the test's output"
    )]
    fn drop(&mut self) {
        // A process that has already ended needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Test runners show this when the test failed, and drop it otherwise.
        eprintln!("--- log of {} ---\n{}", self.name, self.log_end().unwrap_or_default());
    }
}
