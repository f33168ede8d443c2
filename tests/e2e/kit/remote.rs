//! A volume whose server can be stopped: a folder that bindfs shows through the kernel's FUSE, as a network
//! file system would. Needs the right to mount.

use super::wait_until;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// The volume, unmounted when dropped: to be declared before whoever uses it.
pub struct Remote {
    root: TempDir,
    server: Mutex<Option<Child>>,
}

/// While it is held, whoever asks the volume for something waits: for ever, or for as long as it takes.
pub struct Trouble {
    is_over: Arc<AtomicBool>,
    running: Option<JoinHandle<()>>,
}

impl Remote {
    pub fn mounted() -> Self {
        let root = TempDir::new().expect("a folder");
        for folder in ["there", "here"] {
            fs::create_dir(root.path().join(folder)).expect("a folder");
        }
        let remote = Self { root, server: Mutex::new(None) };
        remote.mount();
        remote
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.root.path().join("here")
    }

    /// Where its files are, whatever is the matter with the mount.
    pub fn behind(&self) -> PathBuf {
        self.root.path().join("there")
    }

    /// Mounts it, or mounts it again.
    pub fn mount(&self) {
        let server = Command::new("bindfs")
            .args(["-f", "-o", "nonempty"])
            .args([self.behind(), self.path()])
            .stdin(Stdio::null())
            .spawn()
            .expect("bindfs");
        let before = device(self.root.path());
        *self.server.lock().unwrap() = Some(server);
        wait_until(PATIENCE, "the volume to be mounted (as root, with /dev/fuse)", || {
            device(&self.path()) != before
        });
    }

    /// Leaves an empty folder where it was; who has files of it open keeps them.
    pub fn unmount(&self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmounted.expect("umount").success());
    }

    /// It says nothing any more.
    pub fn freeze(&self) -> Trouble {
        self.trouble(|pid, is_over| {
            signal(pid, "STOP");
            while !is_over.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
        })
    }

    /// It says nothing most of the time: what it is asked for takes `pause`.
    pub fn slow_down(&self, pause: Duration) -> Trouble {
        self.trouble(move |pid, is_over| {
            while !is_over.load(Ordering::SeqCst) {
                signal(pid, "STOP");
                thread::sleep(pause);
                signal(pid, "CONT");
                thread::sleep(Duration::from_millis(20));
            }
        })
    }

    fn trouble(&self, make: impl FnOnce(u32, &AtomicBool) + Send + 'static) -> Trouble {
        let pid = self.server.lock().unwrap().as_ref().expect("a mounted volume").id();
        let is_over = Arc::new(AtomicBool::new(false));
        let told = is_over.clone();
        let running = thread::spawn(move || {
            make(pid, &told);
            signal(pid, "CONT");
        });
        // The first of it is there.
        let stopped = || {
            let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            status.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        };
        wait_until(PATIENCE, "the volume to be silent", stopped);
        Trouble { is_over, running: Some(running) }
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = self.running.take().map(JoinHandle::join);
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).stderr(Stdio::null()).status();
        if let Some(mut server) = self.server.lock().unwrap().take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn device(folder: &Path) -> u64 {
    fs::metadata(folder).map_or(0, |metadata| metadata.dev())
}

fn signal(process: u32, name: &str) {
    let _ = Command::new("sh").arg("-c").arg(format!("kill -{name} {process}")).status();
}
