//! A network of a test's own: a host with an address for each process, and faults between hosts.
//!
//! ```text
//!             root namespace                    phxN-hub            phxN-2, phxN-3, ...
//!  the test ─ phxN (198.18.N.1) ─────────────── bridge ──────────── eth0 (198.18.N.2), one process each
//! ```
//!
//! A host is a network namespace, and a fault is a packet filter rule inside it, so that processes see what
//! they see in a data centre: silence, not an error. The test itself is never cut off from anybody.
//! Networks of tests that run at the same time have numbers of their own; what a killed test left behind is
//! swept by the next one. All of this takes root; without it a test is skipped, and says so.

use std::fs::{File, TryLockError};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Set to `required` where no test may be skipped, as in continuous integration.
const REQUIRED_VARIABLE: &str = "PHALANX_FAULT_TESTS";
/// Networks that can exist at once: more than there are cores to run tests on.
const NETWORKS_MAX: u8 = 64;
/// The bridge, in the hub's namespace.
const BRIDGE: &str = "bridge";

/// Hosts on one bridge. Dropping it ends whatever still runs on them and takes everything down.
#[derive(Debug)]
pub struct Network {
    number: u8,
    hosts: Vec<Host>,
    /// Held for as long as the network exists. The system lets go of it however this process ends.
    _claim: File,
}

/// A place for a process, with an address of its own.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: String,
    address: Ipv4Addr,
}

// === impl Network ===

impl Network {
    /// Makes an empty network; `None`, with the reason printed, where the system does not let us.
    ///
    /// # Errors
    /// When it cannot be made although `PHALANX_FAULT_TESTS=required`.
    pub fn new() -> Result<Option<Self>> {
        or_skip(Self::make().context("no network of our own"))
    }

    fn make() -> Result<Self> {
        let mut claimed = None;
        for number in 0..NETWORKS_MAX {
            let Some(claim) = claim(number)? else { continue };
            sweep(number)?;
            // The others are let go again, swept.
            claimed = claimed.or(Some((number, claim)));
        }
        let (number, claim) = claimed.context("all networks are in use")?;
        let network = Self { number, hosts: Vec::new(), _claim: claim };
        network.lay_out()?;
        Ok(network)
    }

    fn lay_out(&self) -> Result<()> {
        let (hub, end) = (hub(self.number), root_end(self.number));
        let address = format!("{}/24", self.address(1));
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", BRIDGE, "up"])?;
        ip(&["link", "add", &end, "type", "veth", "peer", "name", "root", "netns", &hub])?;
        ip(&["-n", &hub, "link", "set", "root", "master", BRIDGE, "up"])?;
        ip(&["address", "add", &address, "dev", &end])?;
        ip(&["link", "set", &end, "up"])?;
        // What a host needs beside: that its filter works at all is known before any test relies on it.
        iptables(
            &hub,
            &["-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", "0"],
        )
    }

    /// So many further hosts, reached by each other and by the test.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn hosts(&mut self, count: usize) -> Result<Vec<Host>> {
        (0..count).map(|_host| self.host()).collect()
    }

    /// A further host.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn host(&mut self) -> Result<Host> {
        let index = u8::try_from(self.hosts.len() + 2).context("too many hosts for one network")?;
        let (hub, namespace) = (hub(self.number), format!("phx{}-{index}", self.number));
        let (address, port) = (self.address(index), format!("port{index}"));
        let with_mask = format!("{address}/24");
        ip(&["netns", "add", &namespace])?;
        // Listed before it is complete, so that it is taken down however this goes on.
        let host = Host { namespace: namespace.clone(), address };
        self.hosts.push(host.clone());
        let [here, there] = [["-n", &hub], ["-n", &namespace]];
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", &namespace];
        ip(&[&here[..], &["link", "add", &port], &peer].concat())?;
        ip(&[&here[..], &["link", "set", &port, "master", BRIDGE, "up"]].concat())?;
        ip(&[&there[..], &["address", "add", &with_mask, "dev", "eth0"]].concat())?;
        ip(&[&there[..], &["link", "set", "eth0", "up"]].concat())?;
        ip(&[&there[..], &["link", "set", "lo", "up"]].concat())?;
        Ok(host)
    }

    /// Drops every packet between two hosts.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn cut(&self, one: &Host, other: &Host) -> Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Drops every packet that goes `from` one host `to` another; the way back stays open.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn cut_one_way(&self, from: &Host, to: &Host) -> Result<()> {
        let from = from.address.to_string();
        iptables(&to.namespace, &["-A", "INPUT", "-s", &from, "-j", "DROP"])
    }

    /// Cuts a host off from all others, both ways.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn isolate(&self, host: &Host) -> Result<()> {
        for other in self.hosts.iter().filter(|other| other.address != host.address) {
            self.cut(host, other)?;
        }
        Ok(())
    }

    /// Loses this share of the packets that a host gets from another one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn lose(&self, percent: u8, between: &[&Host]) -> Result<()> {
        ensure!(percent <= 100, "{percent} percent is more than all");
        let share = (f64::from(percent) / 100.0).to_string();
        let random = ["-m", "statistic", "--mode", "random", "--probability", &share];
        for to in between {
            for from in between.iter().filter(|from| from.address != to.address) {
                let from = from.address.to_string();
                let rule = [&["-A", "INPUT", "-s", &from][..], &random, &["-j", "DROP"]];
                iptables(&to.namespace, &rule.concat())?;
            }
        }
        Ok(())
    }

    /// Ends all faults.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn heal(&self) -> Result<()> {
        self.hosts.iter().try_for_each(|host| iptables(&host.namespace, &["-F", "INPUT"]))
    }

    const fn address(&self, host: u8) -> Ipv4Addr {
        // A block set aside for tests of networks (RFC 2544), so that it is nobody's real network.
        Ipv4Addr::new(198, 18, self.number, host)
    }
}

impl Drop for Network {
    #[expect(clippy::print_stderr, reason = "what is left behind belongs to the test's output")]
    fn drop(&mut self) {
        if let Err(error) = sweep(self.number) {
            eprintln!("cannot take network {} down: {error:#}", self.number);
        }
    }
}

// === impl Host ===

impl Host {
    /// Its address.
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Packets that faults have dropped on their way to it, since the last [`Network::heal`].
    ///
    /// # Errors
    /// When the system refuses.
    pub fn dropped(&self) -> Result<u64> {
        let listed = output(exec(&self.namespace).args(["iptables", "-nvxL", "INPUT"]))?;
        let of_rule = |line: &str| line.split_whitespace().next()?.parse::<u64>().ok();
        // Under the chain's name and the columns' titles is a line for each rule.
        Ok(listed.lines().skip(2).filter_map(of_rule).sum())
    }

    /// A command that runs `program` on this host, in the test's own process group.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = exec(&self.namespace);
        command.arg(program);
        command
    }
}

/// What only root can have: none, with the reason printed, where it cannot be had and need not be.
///
/// # Errors
/// When it cannot be had although `PHALANX_FAULT_TESTS=required`.
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
pub fn or_skip<T>(had: Result<T>) -> Result<Option<T>> {
    match had {
        Ok(had) => Ok(Some(had)),
        Err(error) if std::env::var(REQUIRED_VARIABLE).is_ok_and(|is| is == "required") => {
            Err(error.context(format!("no test may be skipped with {REQUIRED_VARIABLE}=required")))
        }
        Err(error) => {
            eprintln!("SKIPPED: {error:#}");
            Ok(None)
        }
    }
}

/// Takes a number if no living process has it.
fn claim(number: u8) -> Result<Option<File>> {
    let path = format!("/run/phalanx-network-{number}.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot open {path}"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {path}"))
        }
    }
}

/// Takes down whatever exists of a network, with the processes on it. The caller holds its claim.
fn sweep(number: u8) -> Result<()> {
    let listed = match std::fs::read_dir("/run/netns") {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("cannot list the namespaces"),
    };
    let prefix = format!("phx{number}-");
    // Its namespace goes a moment after its name, and the next network wants this name.
    if Path::new("/sys/class/net").join(root_end(number)).exists() {
        ip(&["link", "delete", &root_end(number)])?;
    }
    for entry in listed {
        let name = entry?.file_name();
        let Some(namespace) = name.to_str().filter(|name| name.starts_with(&prefix)) else {
            continue;
        };
        let processes = output(Command::new("ip").args(["netns", "pids", namespace]))?;
        for process in processes.split_whitespace() {
            // One that has ended meanwhile needs no killing.
            let _ = Command::new("sh").args(["-c", &format!("kill -KILL {process}")]).output();
        }
        // Takes its interfaces along, and these their other ends.
        ip(&["netns", "delete", namespace])?;
    }
    Ok(())
}

fn hub(number: u8) -> String {
    format!("phx{number}-hub")
}

/// The test's end of the wire to the bridge.
fn root_end(number: u8) -> String {
    format!("phx{number}")
}

fn exec(namespace: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]);
    command
}

fn ip(arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}

fn iptables(namespace: &str, arguments: &[&str]) -> Result<()> {
    output(exec(namespace).args(["iptables", "-w"]).args(arguments)).map(drop)
}

/// What a command printed, if it succeeded.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}", output.status, errors.trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
