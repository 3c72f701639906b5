//! What the command line says about mistakes: every fault, one line each, and the right exit code.
#![forbid(unsafe_code)]

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use phalanx_cluster_tests::process::{phalanx_binary, repository};

fn phalanx(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(phalanx_binary()?).args(arguments).current_dir(repository()).output()?)
}

#[track_caller]
fn check(arguments: &[&str], code: i32, lines: &[&str]) -> Result<()> {
    let output = phalanx(arguments)?;
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code), "{arguments:?}: {}\n{complained}", output.status);
    for line in lines {
        ensure!(complained.lines().any(|said| said.contains(line)), "no {line:?} in\n{complained}");
    }
    Ok(())
}

#[test]
fn check_config_reports_every_fault_of_a_file_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("phalanx.toml");
    let text = "[router]\nlisten = \"nowhere\"\n[worker]\nkv_blocks = 0\ncolour = \"red\"\n[tls]\n\
                [telemetry]\nlog_level = = 3\n[wroker]\n";
    std::fs::write(&path, text)?;
    let path = path.display().to_string();
    let lines = [
        "phalanx.toml:2: [router] listen = \"nowhere\": must be HOST:PORT",
        "phalanx.toml:4: [worker] kv_blocks = 0: must be a whole number from 2 to",
        "phalanx.toml:5: [worker] colour = \"red\": unknown key",
        "phalanx.toml:6: [tls]: not available in this build",
        "phalanx.toml:8: log_level = = 3: not TOML",
        "phalanx.toml:9: [wroker]: unknown section",
    ];
    check(&["check-config", &path], 64, &lines)?;
    // A command that would use the file refuses it as completely.
    check(&["serve", "--config", &path], 64, &lines)
}

#[test]
fn what_no_setting_tells_alone_is_reported_like_the_rest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("phalanx.toml");
    let text = "[router]\nrequest_timeout_ms = 100\nrequest_timeout_ms_max = 10\n[worker]\n\
                step_tokens_max = 100\nrunning_max = 600\ncpu_path = \"sse\"\ntp = 3\n\
                model = \"/no/such/folder\"\n[control]\nnode_id = 4\npeers = \"1=http://a:1\"\n";
    std::fs::write(&path, text)?;
    let path = path.display().to_string();
    let shared = [
        "phalanx.toml:2: [router] request_timeout_ms = 100: must be between 1 and 10 (request_timeout_ms_max)",
        "phalanx.toml:6: [worker] running_max = 600: must be between 1 and 100 (step_tokens_max)",
        "phalanx.toml:7: [worker] cpu_path = \"sse\": must be auto or one of portable",
        "phalanx.toml:8: [worker] tp = 3: must be 1",
        "phalanx.toml:9: [worker] model = \"/no/such/folder\": must be an existing folder",
    ];
    check(&["serve", "--config", &path], 64, &shared)?;
    check(&["check-config", &path], 64, &shared)?;
    let peers =
        "phalanx.toml:12: [control] peers = \"1=http://a:1\": must be a list that holds node 4";
    check(&["check-config", &path], 64, &[peers])?;
    check(&["control", "--config", &path], 64, &[peers])?;
    // A flag beats the file, and answers for itself.
    check(
        &["worker", "--config", &path, "--running-max", "601", "--model", "."],
        64,
        &["--running-max 601: must be between 1 and 100 (step_tokens_max)"],
    )
}

#[test]
fn a_good_file_passes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("phalanx.toml");
    std::fs::write(&path, "[router]\nlisten = \"127.0.0.1:0\"\n[worker]\nworkers = 2\n")?;
    check(&["check-config", &path.display().to_string()], 0, &[])
}

#[test]
fn bad_usage_is_64() -> Result<()> {
    check(&["serve", "--no-such-option"], 64, &["--no-such-option"])?;
    check(
        &["serve", "--workers", "0", "--tp", "2"],
        64,
        &[
            "--workers 0: must be a whole number from 1 to 64",
            "--tp 2: must be 1: other values are not available in this build",
        ],
    )?;
    check(&["no-such-command"], 64, &["no-such-command"])?;
    check(&["check-config"], 64, &["check-config needs a file"])
}

#[test]
fn a_model_folder_that_does_not_exist_is_bad_usage() -> Result<()> {
    check(&["serve", "--model", "/no/such/folder"], 64, &["/no/such/folder"])
}

#[test]
fn a_router_that_is_not_there_is_69() -> Result<()> {
    // Port 9 (discard) is closed on any machine that this runs on.
    check(&["chat", "--url", "http://127.0.0.1:9", "Hello"], 69, &["cannot be reached"])
}

#[test]
fn help_is_an_answer_and_names_every_twin() -> Result<()> {
    let output = phalanx(&["serve", "--help"])?;
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && output.stderr.is_empty(), "{}", output.status);
    for words in
        ["--kv-blocks", "PHALANX_KV_BLOCKS", "worker.kv_blocks", "[default: 127.0.0.1:8080]"]
    {
        ensure!(help.contains(words), "no {words:?} in\n{help}");
    }
    Ok(())
}
