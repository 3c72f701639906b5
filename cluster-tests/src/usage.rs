//! What a process and its children cost, as the kernel accounts it.

use anyhow::{Context, Result};

/// The kernel's unit of CPU time (`USER_HZ`), fixed by Linux' ABI.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of a process so far, in seconds.
///
/// # Errors
/// When it is gone.
pub fn cpu_seconds(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = fields(&stat)?;
    let ticks = |index: usize| -> Result<f64> { Ok(fields[index].parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

/// Memory of a process that is resident, in MiB.
///
/// # Errors
/// When it is gone.
pub fn resident_mib(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}

/// A process and all that it started, directly or not.
///
/// # Errors
/// When the system does not say.
pub fn family(process: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that has ended since is nobody's child any more.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        parents.push((id, fields(&stat)?[1].parse::<u32>()?));
    }
    let mut family = vec![process];
    let mut at = 0;
    while at < family.len() {
        let children = parents.iter().filter(|(_, parent)| *parent == family[at]);
        let children: Vec<u32> = children.map(|(id, _)| *id).collect();
        family.extend(children);
        at += 1;
    }
    Ok(family)
}

/// Fields are counted behind the name, which is in parentheses and may hold anything.
fn fields(stat: &str) -> Result<Vec<&str>> {
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    Ok(rest.split_whitespace().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something_and_is_its_own_family() -> Result<()> {
        let own = std::process::id();
        assert!(cpu_seconds(own)? >= 0.0);
        assert!(resident_mib(own)? > 0.1);
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        let family = family(own)?;
        child.kill()?;
        child.wait()?;
        assert_eq!(family[0], own);
        assert!(family.contains(&child.id()), "{family:?}");
        Ok(())
    }
}
