//! Looks at models of devices: `vpio check FILE`, `graph`, `hooks`, `replay`; and lets guests share a device: `vpio serve`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use vpio_model::check::STATES;
use vpio_model::engine::{At, Engine, Translation};
use vpio_model::in_process::{Memory, Registers};
use vpio_model::model::{Model, Sharing};

mod serve;

/// Looks at models of devices, and lets guests share a device.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look for what is wrong. Fails if the model is no model or unsafe.
    Check {
        #[command(flatten)]
        source: Source,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the state machines for Graphviz.
    Graph {
        #[command(flatten)]
        source: Source,
        /// Print a drawing instead, SVG.
        #[arg(long)]
        svg: bool,
    },
    /// Print what must be hooked.
    Hooks {
        #[command(flatten)]
        source: Source,
        /// For several guests that take turns.
        #[arg(long)]
        shared: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a trace through the model. Its lines are `write SPACE OFFSET WIDTH VALUE`, `read SPACE OFFSET WIDTH VALUE` (what the
    /// device gave), `interrupt` and `timer`.
    Replay {
        #[command(flatten)]
        source: Source,
        /// The trace.
        trace: PathBuf,
        /// Bytes of guest memory, from 0, all zeroes.
        #[arg(long, default_value_t = 1 << 20)]
        memory: u32,
        /// Print a line of JSON for each event.
        #[arg(long)]
        json: bool,
    },
    /// Own a PCI function and let the guests of other processes take turns with it, until they or this are killed: `reference-vmm run
    /// --vpio socket=PATH`.
    Serve(serve::ServeArgs),
}

#[derive(Args)]
struct Source {
    /// The model.
    file: PathBuf,
    /// How many states of a part of the model to look into.
    #[arg(long, default_value_t = STATES)]
    states: usize,
}

impl Source {
    fn model(&self) -> Result<Model> {
        let shown = self.file.display().to_string();
        let text =
            fs::read_to_string(&self.file).with_context(|| format!("cannot read {shown}"))?;
        Ok(Model::parse(&shown, &text)?)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match cli.command {
        Command::Check { source, json } => {
            let report = source.model()?.check(source.states);
            if json {
                writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
            } else {
                let all = if report.complete { "all" } else { "the first" };
                writeln!(out, "{all} {} states", report.states)?;
                for finding in &report.findings {
                    let kind = if finding.is_unsafe() {
                        "unsafe"
                    } else {
                        "warning"
                    };
                    writeln!(out, "{kind}: {finding}")?;
                }
            }
            Ok(if report.is_safe() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Command::Graph { source, svg } => {
            let model = source.model()?;
            let report = model.check(source.states);
            let text = if svg {
                model.svg(&report)
            } else {
                model.graph(&report)
            };
            write!(out, "{text}")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Hooks {
            source,
            shared,
            json,
        } => {
            let sharing = if shared {
                Sharing::Shared
            } else {
                Sharing::Exclusive
            };
            let model = source.model()?;
            if json {
                let hooks = model.hooks(sharing);
                writeln!(out, "{}", serde_json::to_string_pretty(&hooks)?)?;
            } else {
                write!(out, "{}", model.hooks_text(sharing))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Replay {
            source,
            trace,
            memory,
            json,
        } => {
            replay(source.model()?, &trace, memory, json, &mut out)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(args) => serve::run(&args),
    }
}

fn replay(model: Model, trace: &Path, memory: u32, json: bool, out: &mut impl Write) -> Result<()> {
    let shadow = usize::try_from(model.shadow_bytes())?;
    let translation = Translation::Identity {
        size: memory.into(),
    };
    let memory = Memory::new(usize::try_from(memory)?, translation, shadow, 1 << 32);
    let mut engine = Engine::new(Arc::new(model), Arc::new(memory));
    let device = Registers::default();
    let shown = trace.display().to_string();
    let text = fs::read_to_string(trace).with_context(|| format!("cannot read {shown}"))?;
    for (line, number) in text.lines().zip(1..) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let before = engine.save().variables;
        let result = match words[..] {
            [] => continue,
            [word, ..] if word.starts_with('#') => continue,
            ["interrupt"] => engine.interrupt(&device).map(|()| None),
            ["timer"] => engine.timer(&device).map(|()| None),
            [access @ ("read" | "write"), space, offset, width, value] => {
                let at = || -> Result<(At, u64)> {
                    let at = At {
                        space: u8::try_from(parse(space)?)?,
                        offset: parse(offset)?,
                        width: u8::try_from(parse(width)?)?,
                    };
                    Ok((at, parse(value)?))
                };
                let (at, value) = at().with_context(|| format!("{shown}:{number}"))?;
                if access == "write" {
                    engine.write(at, value, &device).map(Some)
                } else {
                    let watched = engine.before_read(at);
                    watched.and_then(|_| engine.after_read(at, value, &device).map(Some))
                }
            }
            _ => bail!("{shown}:{number}: this is no event: {line}"),
        };
        let after = engine.save().variables;
        let changed: Vec<_> = after
            .iter()
            .filter(|(name, value)| before.get(*name) != Some(value))
            .collect();
        let denied = result.as_ref().err().map(ToString::to_string);
        let forwarded = result.ok().flatten();
        if json {
            let event = json!({
                "line": number,
                "event": line,
                "denied": denied,
                "value": forwarded,
                "changed": changed.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            });
            writeln!(out, "{event}")?;
        } else {
            let verdict = denied.map_or("allowed".to_owned(), |why| format!("denied: {why}"));
            let changed: Vec<String> = changed
                .iter()
                .map(|(name, value)| format!("{name}={value:#x}"))
                .collect();
            writeln!(out, "{number}: {line}: {verdict} {}", changed.join(" "))?;
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    u64::from_str_radix(digits, radix).with_context(|| format!("this is no number: {text}"))
}
