//! The `phalanx` binary: every role and every tool of the cluster.
//!
//! ```text
//! arguments (from settings) ──► Invocation ──► serve | control | worker | router | operator | chat | check_config
//! ```
//!
//! Reading order: [`settings`], [`arguments`], then one file per command; [`roles`] runs the roles of a
//! process to their end. Deliberately absent: what a role does.
#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod chat;
mod check_config;
mod control;
mod engine_sim;
mod event_stream;
mod failure;
mod http_client;
mod model_folder;
mod operator;
mod ready;
mod relations;
mod roles;
mod router;
mod serve;
mod serve_metrics;
mod settings;
mod worker;

use std::io::Write;
use std::process::ExitCode;

use phalanx_chassis::config::Resolved;
use phalanx_chassis::telemetry::{self, LogFormat};

use crate::arguments::Invocation;
use crate::failure::Failure;
use crate::ready::ReadyFile;

fn main() -> ExitCode {
    let matches = match arguments::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are answers, not faults.
            let code = if error.use_stderr() { 64 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let environment = |name: &str| std::env::var(name).ok();
    match arguments::resolve_invocation(&matches, &environment).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(invocation: Invocation) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))?;
    let _ready_file = match &invocation {
        Invocation::Serve(settings)
        | Invocation::Control(settings)
        | Invocation::Worker(settings)
        | Invocation::Router(settings)
        | Invocation::EngineSim(settings) => Some(ReadyFile::claim(settings)?),
        Invocation::Operate(..)
        | Invocation::Chat(..)
        | Invocation::Bench(_)
        | Invocation::CheckConfig(_) => None,
    };
    let outcome = runtime.block_on(async {
        match invocation {
            Invocation::Serve(settings) => Box::pin(serve::run(&settings)).await,
            Invocation::Control(settings) => Box::pin(control::run(&settings)).await,
            Invocation::Worker(settings) => Box::pin(worker::run(&settings)).await,
            Invocation::Router(settings) => Box::pin(router::run(&settings)).await,
            Invocation::EngineSim(settings) => Box::pin(engine_sim::run(&settings)).await,
            Invocation::Operate(settings, action) => {
                Box::pin(operator::run(&settings, action)).await
            }
            Invocation::Chat(settings, prompt) => Box::pin(chat::run(&settings, prompt)).await,
            Invocation::Bench(settings) => Box::pin(bench::run(&settings)).await,
            Invocation::CheckConfig(path) => check_config::run(&path),
        }
    });
    // All roles have ended; a thread that still computes or reads has nobody left to tell.
    runtime.shutdown_background();
    outcome
}

/// Starts the logs of a role's process.
fn start_logs(resolved: &Resolved) -> Result<(), Failure> {
    let format = match resolved.text(&settings::LOG_FORMAT) {
        Some("text") => LogFormat::Text,
        Some(_) => LogFormat::Json,
        None => LogFormat::for_stderr(),
    };
    let levels = resolved.text(&settings::LOG_LEVEL).unwrap_or_default();
    telemetry::init(format, levels).map_err(|error| Failure::usage(failure::chain(&error)))
}

/// Prints to stdout; a reader that has gone is no fault of ours.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
