//! Containers, networks and volumes, removed when they are dropped.

use super::{docker, name, try_docker};
use crate::kit::{Run, wait_until};
use std::process::Command;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running or stopped container.
pub struct Container {
    name: String,
}

impl Container {
    /// `docker run --detach OPTIONS IMAGE COMMAND`.
    pub fn start(what: &str, options: &[&str], image: &str, command: &[&str]) -> Self {
        let container = Self { name: name(what) };
        let mut arguments = vec!["run", "--detach", "--name", &container.name];
        arguments.extend(options);
        arguments.push(image);
        arguments.extend(command);
        docker(&arguments);
        container
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command in it, and waits for its end.
    pub fn exec(&self, command: &[&str]) -> Run {
        self.exec_with(&[], command)
    }

    /// The same with options of `docker exec`, such as `--user root`.
    pub fn exec_with(&self, options: &[&str], command: &[&str]) -> Run {
        let started = Instant::now();
        let output = Command::new("docker")
            .arg("exec")
            .args(options)
            .arg(&self.name)
            .args(command)
            .output()
            .expect("docker");
        let [out, err] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
        Run { ok: output.status.success(), output: format!("{out}{err}"), took: started.elapsed() }
    }

    /// Runs a command in it that has to succeed. What it said.
    pub fn must(&self, command: &[&str]) -> String {
        let run = self.exec(command);
        assert!(run.ok, "{}: {}\n{}\n{}", self.name, command.join(" "), run.output, self.logs());
        run.output
    }

    /// All that it wrote.
    pub fn logs(&self) -> String {
        let output = Command::new("docker").args(["logs", &self.name]).output().expect("docker");
        let [out, err] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
        format!("{out}{err}")
    }

    /// What `docker inspect` tells in a Go template's terms, such as `{{.State.Status}}`.
    pub fn inspect(&self, template: &str) -> String {
        docker(&["inspect", "--format", template, &self.name])
    }

    /// The address of this container in its first network.
    pub fn ip(&self) -> String {
        let all = self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}");
        all.split_whitespace().next().expect("a network").to_owned()
    }

    /// Waits until its HEALTHCHECK says that it is well.
    pub fn wait_until_healthy(&self) {
        let is_settled = || {
            let state = self.inspect("{{.State.Status}} {{.State.Health.Status}}");
            assert!(!state.starts_with("exited"), "{} has ended:\n{}", self.name, self.logs());
            state.ends_with(" healthy")
        };
        wait_until(PATIENCE, &format!("{} to be healthy", self.name), is_settled);
    }

    /// `docker stop`, with a grace time in seconds. Its exit code: 137 is that of who had to be killed.
    pub fn stop(&self, grace: u32) -> i32 {
        docker(&["stop", "--time", &grace.to_string(), &self.name]);
        self.inspect("{{.State.ExitCode}}").parse().expect("a number")
    }

    /// `docker kill` with a signal, such as `KILL`.
    pub fn kill(&self, signal: &str) {
        docker(&["kill", "--signal", signal, &self.name]);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("== {}\n{}", self.name, self.logs());
        }
        let _ = try_docker(&["rm", "--force", "--volumes", &self.name]);
    }
}

/// A bridge of its own: to be declared before the containers on it.
pub struct Network {
    name: String,
}

impl Network {
    pub fn new(what: &str) -> Self {
        let network = Self { name: name(what) };
        docker(&["network", "create", &network.name]);
        network
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = try_docker(&["network", "rm", &self.name]);
    }
}

/// A volume: to be declared before the containers that use it.
pub struct Volume {
    name: String,
}

impl Volume {
    pub fn new(what: &str) -> Self {
        let volume = Self { name: name(what) };
        docker(&["volume", "create", &volume.name]);
        volume
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = try_docker(&["volume", "rm", "--force", &self.name]);
    }
}
