//! CPU and memory of processes on this machine, from `/proc` (man 5 proc).

use std::{collections::BTreeMap, fs};

use devstack::MEMBERS;
use serde::Serialize;

/// What one process and its children have used so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu_seconds: f64,
    /// Resident now; of PostgreSQL without the memory that its processes share.
    pub(crate) resident_mb: f64,
    /// Largest resident size so far.
    pub(crate) peak_mb: f64,
}

/// Usage by process.
pub(crate) type Usages = BTreeMap<String, Usage>;

/// Clock ticks per second, which Linux reports as 100 on every architecture.
const TICKS: f64 = 100.0;

/// Processes that are not on this machine are left out.
pub(crate) fn usage(pids: &BTreeMap<String, u32>) -> Usages {
    let parents = parents();
    let with_children = |pid: u32| {
        let mut sum = usage_of(pid)?;
        let children = parents.iter().filter(|(_, parent)| *parent == pid);
        for child in children.filter_map(|(child, _)| usage_of(*child)) {
            sum.cpu_seconds += child.cpu_seconds;
            sum.resident_mb += child.resident_mb;
            sum.peak_mb += child.peak_mb;
        }
        Some(sum)
    };
    pids.iter()
        .filter_map(|(name, pid)| Some((name.clone(), with_children(*pid)?)))
        .collect()
}

/// The usage in `after`, with the CPU time that was used since `before`.
pub(crate) fn since(before: &Usages, mut after: Usages) -> Usages {
    for (name, usage) in &mut after {
        usage.cpu_seconds -= before.get(name).map_or(0.0, |before| before.cpu_seconds);
    }
    after
}

pub(crate) fn cpu_seconds(usages: &Usages) -> f64 {
    usages.values().map(|usage| usage.cpu_seconds).sum()
}

/// Resident memory by process.
pub(crate) fn resident_mb(usages: &Usages) -> BTreeMap<String, f64> {
    let resident = |(name, usage): (&String, &Usage)| (name.clone(), usage.resident_mb);
    usages.iter().map(resident).collect()
}

/// The services and the gateway together, without servers and stand-ins.
pub(crate) fn services_resident_mb(usages: &Usages) -> f64 {
    MEMBERS
        .iter()
        .filter(|member| !member.stand_in)
        .flat_map(|member| [member.name.to_owned(), format!("{}-replica", member.name)])
        .filter_map(|name| usages.get(&name))
        .map(|usage| usage.resident_mb)
        .sum()
}

fn usage_of(pid: u32) -> Option<Usage> {
    let stat = fields_of(pid)?;
    // utime, stime and those of children that have ended
    let ticks: f64 = stat
        .get(11..15)?
        .iter()
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = |name: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .and_then(|value| value.split_whitespace().next()?.parse::<f64>().ok())
            .unwrap_or_default()
    };
    let shared = kilobytes("RssShmem");
    Some(Usage {
        cpu_seconds: ticks / TICKS,
        resident_mb: (kilobytes("VmRSS") - shared) / 1024.0,
        peak_mb: (kilobytes("VmHWM") - shared) / 1024.0,
    })
}

/// (process, parent) of all processes.
fn parents() -> Vec<(u32, u32)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, fields_of(pid)?.get(1)?.parse().ok()?)))
        .collect()
}

/// The fields of `/proc/PID/stat` behind the name. The name is in brackets and may contain spaces
/// and brackets itself.
fn fields_of(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}
