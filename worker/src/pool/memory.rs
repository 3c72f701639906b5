//! How much memory this process may use.

use std::fs;

/// What the system has, or what the process' control group may use if that is less; 0 where neither can be told.
pub(super) fn bytes() -> u64 {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    bytes_in(&read("/proc/meminfo"), &read("/sys/fs/cgroup/memory.max"))
}

fn bytes_in(meminfo: &str, group_max: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let total = total.and_then(|kib| kib.checked_mul(1024));
    // `max` where there is no limit.
    let group = group_max.trim().parse::<u64>().ok();
    total.into_iter().chain(group).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_system_and_group_counts() {
        let meminfo = "MemTotal:       16384 kB\nMemFree:        1 kB\n";
        assert_eq!(bytes_in(meminfo, "max\n"), 16 << 20);
        assert_eq!(bytes_in(meminfo, "1048576\n"), 1 << 20);
        assert_eq!(bytes_in(meminfo, "99999999999\n"), 16 << 20);
        assert_eq!(bytes_in("", ""), 0);
    }
}
