//! What processes of this machine use, from `/proc` (man 5 proc).

use std::{collections::BTreeMap, fs};

use serde::Serialize;

/// What one process and its children have used so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// User and system time.
    pub cpu_seconds: f64,
    /// Resident now, in MB; of PostgreSQL without what its processes share.
    pub resident_mb: f64,
    /// Largest so far.
    pub peak_mb: f64,
}

/// Clock ticks per second on Linux, wherever user space sees them.
const TICKS: f64 = 100.0;

/// Usage by process; those that are not on this machine are left out.
pub fn usage(pids: &BTreeMap<String, u32>) -> BTreeMap<String, Usage> {
    let parents = parents();
    pids.iter()
        .filter_map(|(name, pid)| {
            let mut sum = of(*pid)?;
            for child in parents
                .iter()
                .filter(|(_, parent)| *parent == *pid)
                .filter_map(|(child, _)| of(*child))
            {
                sum.cpu_seconds += child.cpu_seconds;
                sum.resident_mb += child.resident_mb;
                sum.peak_mb += child.peak_mb;
            }
            Some((name.clone(), sum))
        })
        .collect()
}

fn of(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; fields are counted from behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // utime, stime and those of children that have ended
    let ticks: f64 = fields
        .get(11..15)?
        .iter()
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kb = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
            .unwrap_or_default()
    };
    let shared = kb("RssShmem");
    Some(Usage {
        cpu_seconds: ticks / TICKS,
        resident_mb: (kb("VmRSS") - shared) / 1024.0,
        peak_mb: (kb("VmHWM") - shared) / 1024.0,
    })
}

fn parents() -> Vec<(u32, u32)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()?;
        Some((pid, parent))
    })
    .collect()
}
