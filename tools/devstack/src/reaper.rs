//! Ends processes and removes directories when we end, however we end: a shell waits for the end of
//! a pipe that only we hold open. A panic, `kill -9` or a lost terminal closes it as well.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;

/// Remembers what must end with us; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reaper(Arc<Mutex<ChildStdin>>);

/// Reads `add PID SIGNAL`, `del PID` and `dir PATH`; at the end of the pipe sends the signals,
/// waits for up to three seconds, kills what is left and removes the directories.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=' '
while read -r what first second; do
    case "$what" in
        add) pids="$pids$first:$second " ;;
        del) pids=$(printf '%s' "$pids" | sed "s/ $first:[A-Z]* / /") ;;
        dir) set -- "$@" "$first" ;;
    esac
done
for each in $pids; do kill -s "${each#*:}" "${each%%:*}"; done
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
    /// Starts the shell.
    pub fn new() -> anyhow::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "reaper"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at our terminal must not reach it.
            .process_group(0)
            .spawn()
            .context("start /bin/sh as the reaper")?;
        let pipe = shell.stdin.take().context("the reaper has no pipe")?;
        Ok(Self(Arc::new(Mutex::new(pipe))))
    }

    pub(crate) fn add(&self, pid: u32, signal: &str) {
        self.tell(&format!("add {pid} {signal}"));
    }

    pub(crate) fn forget(&self, pid: u32) {
        self.tell(&format!("del {pid}"));
    }

    pub(crate) fn remove_at_end(&self, directory: &Path) {
        self.tell(&format!("dir {}", directory.display()));
    }

    fn tell(&self, line: &str) {
        let mut pipe = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writeln!(pipe, "{line}") {
            tracing::warn!(%error, line, "the reaper is gone; processes may be left behind");
        }
    }
}
