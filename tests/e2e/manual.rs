//! Manual pages and completions, made of the command itself.

use crate::kit::aptmesh;
use aptmesh::config::KEYS;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn written() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let run = aptmesh().arg("manual").arg(folder.path().join("made")).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    folder
}

/// The commands that `--help` lists.
fn verbs() -> Vec<String> {
    let help = aptmesh().arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let (_, listed) = help.split_once("Commands:\n").expect("a list of commands");
    let (listed, _) = listed.split_once("\n\n").expect("its end");
    let names = listed.lines().filter(|line| !line.starts_with("    "));
    let names = names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
    let names: Vec<String> = names.filter(|name| name != "help").collect();
    assert!(names.len() > 9 && !names.contains(&"manual".to_owned()), "{names:?}");
    names
}

/// What a page says; what it is typeset with must have nothing to complain of, on a usual screen either.
fn page(path: &Path) -> String {
    let typeset = |width: &str| {
        let mut groff = Command::new("groff");
        groff.args(["-man", "-ww", "-Tutf8", "-Kutf8", "-P-cbou", width]).arg(path);
        let done = groff.output().expect("groff");
        let complaints = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && complaints.is_empty(), "{}: {complaints}", path.display());
        String::from_utf8(done.stdout).unwrap()
    };
    typeset("-rLL=80n");
    typeset("-rLL=2000n")
}

#[test]
fn every_command_has_a_page_that_reads_well() {
    let folder = written();
    let pages = folder.path().join("made/man1");
    let mut expected: Vec<PathBuf> =
        verbs().iter().map(|verb| pages.join(format!("aptmesh-{verb}.1"))).collect();
    expected.push(pages.join("aptmesh.1"));
    expected.sort();
    let mut made: Vec<PathBuf> =
        fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().path()).collect();
    made.sort();
    assert_eq!(made, expected);
    for path in &made {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let text = page(path);
        assert!(text.contains("NAME") && text.contains(name), "{}: {text}", path.display());
    }
    assert!(page(&pages.join("aptmesh.1")).contains("aptmesh-serve(1)"));
}

#[test]
fn every_setting_is_in_the_page_of_settings() {
    let folder = written();
    let text = page(&folder.path().join("made/man5/aptmesh.toml.5"));
    let words = |text: &str| text.replace('`', "").split_whitespace().collect::<Vec<_>>().join(" ");
    let text = words(&text);
    for key in &KEYS {
        let (section, name) = key.name.split_once('.').unwrap();
        assert!(text.contains(&format!("[{section}]")), "{}", key.name);
        assert!(text.contains(&format!(" {name} ({}", key.variable())), "{}: {text}", key.name);
        assert!(text.contains(&words(key.doc)), "{}: {text}", key.name);
    }
}

#[test]
fn shells_complete_every_command() {
    let folder = written();
    let made = folder.path().join("made/completions");
    for name in ["zsh/_aptmesh", "fish/aptmesh.fish"] {
        let script = fs::read_to_string(made.join(name)).unwrap();
        for verb in verbs() {
            assert!(script.contains(&verb), "{verb} is not in {name}");
        }
    }
    let script = "source \"$0\"; COMP_WORDS=(aptmesh \"$1\"); COMP_CWORD=1; \
                  _aptmesh aptmesh \"$1\" aptmesh; echo \"${COMPREPLY[@]}\"";
    for verb in verbs() {
        let run = Command::new("bash")
            .args(["-c", script])
            .arg(made.join("bash/aptmesh"))
            .arg(&verb)
            .output()
            .expect("bash");
        let completed = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(completed.split_whitespace().any(|word| word == verb), "{verb}: {run:?}");
    }
}
