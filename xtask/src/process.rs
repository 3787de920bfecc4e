//! Child processes: run to the end, read, or bounded in time.

use std::fmt::Write as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// `command` as one would type it, for messages.
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        // Writing to a String cannot fail.
        let _ = write!(text, " {}", quoted(&arg.to_string_lossy()));
    }
    text
}

/// `word` as a POSIX shell reads it back.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs `command`; an error if it cannot start or ends with another status than 0.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` without showing what it prints; what it printed is in the error if it fails.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs `command` and returns what it wrote to its standard output.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` ended with {}:\n{}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// Like [`output`], as text.
pub fn output_text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}

/// Whether `program` can be started at all.
pub fn exists(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// Waits for `child` until it ends or `bound` has passed, calling `tick` a few times a second. At
/// the bound the child is killed and `None` returned; so it is when `tick` fails.
pub fn wait_bounded(
    mut child: Child,
    bound: Duration,
    mut tick: impl FnMut() -> Result<()>,
) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            tick()?;
            return Ok(Some(status));
        }
        let ticked = tick();
        if ticked.is_err() || start.elapsed() >= bound {
            child.kill()?;
            child.wait()?;
            return ticked.map(|()| None);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_the_shell() {
        for word in [
            "",
            "plain",
            "two words",
            "it's",
            "$HOME",
            "a;b",
            "\"x\"",
            "tab\there",
            "*",
        ] {
            let script = format!("printf %s {}", quoted(word));
            assert_eq!(
                output_text(Command::new("sh").args(["-c", &script])).unwrap(),
                word
            );
        }
    }

    #[test]
    fn a_child_that_overstays_is_killed() {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let status = wait_bounded(child, Duration::from_millis(1), || Ok(())).unwrap();
        assert!(status.is_none());
    }
}
