//! How the process ends when it does not end well.

use std::io::Write;
use std::process::ExitCode;

pub(crate) use phalanx_chassis::error_chain::chain;

/// Why the command did not do what was asked: exit code and lines for the user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Bad usage or configuration; one line per fault.
    Usage(Vec<String>),
    /// A service that the command needs cannot be reached.
    Unreachable(String),
    /// Anything else.
    Failed(String),
}

// === impl Failure ===

impl Failure {
    /// One fault of usage.
    pub(crate) fn usage(line: impl Into<String>) -> Self {
        Self::Usage(vec![line.into()])
    }

    /// The lines for the user.
    pub(crate) fn lines(&self) -> &[String] {
        match self {
            Self::Usage(lines) => lines,
            Self::Unreachable(line) | Self::Failed(line) => std::slice::from_ref(line),
        }
    }

    /// Prints the lines to stderr and gives the exit code, as `sysexits.h` numbers them.
    pub(crate) fn report(&self) -> ExitCode {
        let mut stderr = std::io::stderr().lock();
        for line in self.lines() {
            // With stderr gone there is nobody to tell; the exit code still does.
            let _ = writeln!(stderr, "phalanx: {line}");
        }
        ExitCode::from(match self {
            Self::Usage(_) => 64,
            Self::Unreachable(_) => 69,
            Self::Failed(_) => 1,
        })
    }
}
