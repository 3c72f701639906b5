//! The routers that are measured, each as its users start it, in front of the same engines.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use phalanx_cluster_tests::check::eventually;
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::control_group::{ControlGroup, free_ports};
use phalanx_cluster_tests::engines::Engines;
use phalanx_cluster_tests::process::{phalanx_binary, repository};
use phalanx_cluster_tests::usage::{cpu_seconds, family, resident_mib};

/// How long a router may take to serve; Python's take several seconds to load.
const START_MAX: Duration = Duration::from_secs(60);
/// Between two looks at a process.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Connections of nginx and haproxy: more than any load here has requests at once, and within the usual limit of
/// descriptors, two for each.
const CONNECTIONS_MAX: u32 = 4096;

/// Which router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// None: the first engine itself.
    Direct,
    Nginx,
    Haproxy,
    /// sglang-router, with this policy.
    Sglang(&'static str),
    /// vllm-router, with this policy.
    Vllm(&'static str),
    /// Ours, before engines over OpenAI's API.
    Foreign,
    /// Ours, before engines over gRPC.
    Native,
}

/// All of them, by the names that `--routers` takes.
pub(crate) const ALL: [(&str, Kind); 10] = [
    ("direct", Kind::Direct),
    ("nginx", Kind::Nginx),
    ("haproxy", Kind::Haproxy),
    ("sglang-round-robin", Kind::Sglang("round_robin")),
    ("sglang-power-of-two", Kind::Sglang("power_of_two")),
    ("sglang-cache-aware", Kind::Sglang("cache_aware")),
    ("vllm-round-robin", Kind::Vllm("round_robin")),
    ("vllm-cache-aware", Kind::Vllm("cache_aware")),
    ("phalanx-foreign", Kind::Foreign),
    ("phalanx-native", Kind::Native),
];

/// A router and the engines behind it.
pub(crate) struct Site {
    pub(crate) engines: Engines,
    pub(crate) url: String,
    router: Option<Running>,
    _control: Option<ControlGroup>,
    _folder: tempfile::TempDir,
}

/// A router's process. Dropping it ends it and what it started.
struct Running {
    child: Child,
    log: PathBuf,
}

// === impl Site ===

impl Site {
    /// Starts engines with `options` and a router in front of them, and waits until it serves.
    pub(crate) async fn start(kind: Kind, options: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path();
        let control = match kind {
            Kind::Native => Some(ControlGroup::start(1).await?),
            _ => None,
        };
        let control_urls = control.as_ref().map(|control| control.urls().join(","));
        let mut options = options.to_vec();
        if let Some(urls) = &control_urls {
            options.extend(["--native", "--control", urls]);
        }
        let engines = Engines::start(path, "engines", &options).await?;
        let ports = free_ports(2)?;
        let url = match kind {
            Kind::Direct => engines.urls[0].clone(),
            _ => format!("http://127.0.0.1:{}", ports[0]),
        };
        let command = command(kind, path, [ports[0], ports[1]], &engines.urls, control_urls)?;
        let router = command.map(|command| Running::start(command, path)).transpose()?;
        let mut site = Self { engines, url, router, _control: control, _folder: folder };
        site.serves().await?;
        Ok(site)
    }

    /// Waits until the router answers through every engine.
    async fn serves(&mut self) -> Result<()> {
        let client = Client::new(&self.url);
        let body = serde_json::json!({
            "model": "sim", "messages": [{"role": "user", "content": "ready?"}], "max_tokens": 1
        });
        let answers = async || {
            // As often in a row as there are engines: those it knows of by then are all.
            for _ in 0..self.engines.urls.len() {
                let answer = client.post("/v1/chat/completions", &body).await?;
                ensure!(answer.status == 200, "{answer:?}");
            }
            Ok(true)
        };
        let Some(router) = &mut self.router else {
            return eventually("the engine serves", START_MAX, answers).await;
        };
        let served = tokio::select! {
            served = eventually("the router serves", START_MAX, answers) => served,
            ended = router.ended() => ended,
        };
        served.map_err(|error| anyhow!("{error:#}\n{}", router.log_end()))
    }

    /// CPU time of the router so far, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let Some(router) = &self.router else { return Ok(0.0) };
        family(router.child.id())?.into_iter().map(cpu_seconds).sum()
    }

    /// Resident memory of the router, in MiB.
    pub(crate) fn resident(&self) -> Result<f64> {
        let Some(router) = &self.router else { return Ok(0.0) };
        family(router.child.id())?.into_iter().map(resident_mib).sum()
    }
}

// === impl Running ===

impl Running {
    fn start(mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join("router.log");
        let output = File::create(&log)?;
        let child = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child, log })
    }

    /// Resolves only if the process ends.
    async fn ended(&mut self) -> Result<()> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the router ended with {status}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let skip = text.lines().count().saturating_sub(30);
        text.lines().skip(skip).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Children first: nobody is left to end them afterwards.
        let family = family(self.child.id()).unwrap_or_default();
        for process in family.iter().skip(1).rev() {
            let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a router is started; its port first, a spare one second.
fn command(
    kind: Kind,
    folder: &Path,
    [port, spare]: [u16; 2],
    engines: &[String],
    control: Option<String>,
) -> Result<Option<Command>> {
    let (port, spare) = (port.to_string(), spare.to_string());
    let listen = format!("127.0.0.1:{port}");
    let python = |name: &str| {
        let path = repository().canonicalize().unwrap_or_default();
        Command::new(path.join("bench/rivals/.venv/bin").join(name))
    };
    let mut command = match kind {
        Kind::Direct => return Ok(None),
        Kind::Nginx => {
            let file = folder.join("nginx.conf");
            std::fs::write(&file, nginx(&listen, engines))?;
            let mut command = Command::new("nginx");
            command.arg("-p").arg(folder).arg("-c").arg(file).args(["-e", "stderr"]);
            command
        }
        Kind::Haproxy => {
            let file = folder.join("haproxy.cfg");
            std::fs::write(&file, haproxy(&listen, engines))?;
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(file);
            command
        }
        Kind::Sglang(policy) => {
            let mut command = python("smg");
            command.args(["launch", "--policy", policy, "--log-level", "warn"]);
            command.args(["--worker-urls"]).args(engines);
            command
        }
        Kind::Vllm(policy) => {
            let mut command = python("vllm-router");
            command.args(["--policy", policy, "--log-level", "warning"]);
            command.args(["--worker-urls"]).args(engines);
            command
        }
        Kind::Foreign => {
            let mut command = Command::new(phalanx_binary()?);
            command.args(["router", "--listen", &listen]);
            for engine in engines {
                command.args(["--engine", engine]);
            }
            command
        }
        Kind::Native => {
            let mut command = Command::new(phalanx_binary()?);
            command.args(["router", "--listen", &listen, "--control"]);
            command.arg(control.context("native engines need a control node")?);
            command
        }
    };
    if matches!(kind, Kind::Sglang(_) | Kind::Vllm(_)) {
        command.args(["--host", "127.0.0.1", "--port", &port, "--prometheus-port", &spare]);
    }
    Ok(Some(command))
}

/// One worker process, as everybody here has two cores for everything; nothing is written or buffered.
fn nginx(listen: &str, engines: &[String]) -> String {
    let servers: String =
        engines.iter().map(|url| format!("        server {};\n", address(url))).collect();
    format!(
        "daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections {CONNECTIONS_MAX}; }}\n\
         http {{\n    access_log off;\n    client_body_temp_path body;\n    proxy_temp_path proxy;\n    \
         fastcgi_temp_path fastcgi;\n    uwsgi_temp_path uwsgi;\n    scgi_temp_path scgi;\n    \
         client_max_body_size 64m;\n    client_body_buffer_size 1m;\n    keepalive_requests 1000000000;\n    \
         upstream engines {{\n        least_conn;\n{servers}        keepalive 256;\n        \
         keepalive_requests 1000000000;\n    }}\n    \
         server {{\n        listen {listen};\n        location / {{\n            \
         proxy_pass http://engines;\n            proxy_http_version 1.1;\n            \
         proxy_set_header Connection \"\";\n            proxy_buffering off;\n            \
         proxy_read_timeout 600s;\n        }}\n    }}\n}}\n"
    )
}

fn haproxy(listen: &str, engines: &[String]) -> String {
    let servers: String = (0..)
        .zip(engines)
        .map(|(index, url): (usize, _)| format!("    server e{index} {}\n", address(url)))
        .collect();
    format!(
        "global\n    nbthread 1\n    maxconn {CONNECTIONS_MAX}\n\
         defaults\n    mode http\n    timeout connect 5s\n    timeout client 600s\n    timeout server 600s\n    \
         option http-keep-alive\n    http-reuse always\n\
         frontend clients\n    bind {listen}\n    default_backend engines\n\
         backend engines\n    balance leastconn\n{servers}"
    )
}

fn address(url: &str) -> &str {
    url.trim_start_matches("http://")
}
