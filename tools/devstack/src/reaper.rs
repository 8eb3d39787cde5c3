//! Ends child processes and removes directories when this process ends, however it ends. A shell
//! reads from a pipe that only this process holds open. The pipe closes after a normal exit, a
//! panic, `kill -9` or a lost terminal; then the shell cleans up.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::Arc,
};

use anyhow::Context as _;
use parking_lot::Mutex;

/// Handle of the cleaning shell. Dropping the last clone starts the cleanup.
#[derive(Clone, Debug)]
pub struct Reaper(Arc<Mutex<ChildStdin>>);

/// Reads `add PID SIGNAL`, `del PID` and `dir PATH`. At the end of the pipe it resumes what a test
/// has paused, sends the signals, waits for up to three seconds, kills what is left and removes the
/// directories. A path may contain spaces.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=' '
while read -r what first second; do
    case "$what" in
        add) pids="$pids$first:$second " ;;
        del) pids=$(printf '%s' "$pids" | sed "s/ $first:[A-Z]* / /") ;;
        dir) set -- "$@" "$first${second:+ $second}" ;;
    esac
done
for each in $pids; do
    pid=${each%%:*}
    kill -s CONT "$pid" $(ps -o pid= --ppid "$pid")
    kill -s "${each#*:}" "$pid"
done
for tenth in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
    alive=''
    for each in $pids; do kill -0 "${each%%:*}" && alive=yes; done
    [ -z "$alive" ] && break
    sleep 0.1
done
for each in $pids; do kill -s KILL "${each%%:*}"; done
for each in "$@"; do rm -rf -- "$each"; done
"#;

impl Reaper {
    pub fn new() -> anyhow::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "reaper"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C at the terminal must not end it.
            .process_group(0)
            .spawn()
            .context("start /bin/sh as the reaper")?;
        let pipe = shell.stdin.take().context("the reaper has no pipe")?;
        Ok(Self(Arc::new(Mutex::new(pipe))))
    }

    pub(crate) fn add(&self, pid: u32, signal: &str) {
        self.send(&format!("add {pid} {signal}"));
    }

    pub(crate) fn forget(&self, pid: u32) {
        self.send(&format!("del {pid}"));
    }

    pub(crate) fn remove_at_end(&self, directory: &Path) {
        self.send(&format!("dir {}", directory.display()));
    }

    fn send(&self, line: &str) {
        if let Err(error) = writeln!(self.0.lock(), "{line}") {
            tracing::warn!(
                %error,
                line,
                "the reaper has ended; processes and directories may be left behind"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::TemporaryDirectory;

    #[test]
    fn a_directory_with_a_space_in_its_path_is_removed_and_no_other() {
        let reaper = Reaper::new().unwrap();
        let directory = TemporaryDirectory::new(&reaper).unwrap();
        let [neighbour, other] = ["my", "my directory"].map(|name| directory.path().join(name));
        std::fs::create_dir(&neighbour).unwrap();
        std::fs::create_dir(&other).unwrap();
        let second = Reaper::new().unwrap();
        second.remove_at_end(&other);
        drop(second);
        let began = Instant::now();
        while other.exists() {
            assert!(began.elapsed() < Duration::from_secs(60), "it stays");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(neighbour.exists());
    }
}
