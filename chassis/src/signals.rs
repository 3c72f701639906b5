//! The operating system's wish to end the process, as drain phases.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use crate::drain::Phase;

/// SIGTERM and SIGINT, as they come: the first asks to drain, the second to stop.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    seen: u32,
}

impl Signals {
    /// Takes over both signals; from here on neither kills the process.
    ///
    /// # Errors
    /// When the operating system refuses the handlers.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            seen: 0,
        })
    }

    /// Waits for the next signal and says which phase it asks for. Cancel safe.
    pub async fn next(&mut self) -> Phase {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        self.seen += 1;
        let phase = if self.seen == 1 { Phase::Draining } else { Phase::Stopping };
        info!(signal = name, ?phase, "asked to end");
        phase
    }
}
