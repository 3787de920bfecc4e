//! Several guests, one after the other in one emulated host, whose own start is dear.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{BootArgs, Guest};
use crate::lab::attempts::{ATTEMPTS_WITH_MANY_EXITS, GuestDied, attempts};
use crate::lab::host::{Finished, Host};
use crate::progress::Progress;

/// One of the guests.
pub struct Boot {
    /// One word, which names the folder of its logs.
    pub name: String,
    /// What boots, and in what.
    pub args: BootArgs,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Boots `boots` and has `read` look at what each left; also returns at which attempt the last one lived. A guest
/// that died is tried again without the others.
pub fn run<T>(
    host: &Host,
    boots: &[Boot],
    read: impl Fn(&Boot, &Finished) -> Result<T>,
    progress: &Progress,
) -> Result<(Vec<T>, u32)> {
    let scripts = boots
        .iter()
        .map(|boot| boot.script(progress))
        .collect::<Result<Vec<_>>>()?;
    let mut results = BTreeMap::new();
    let ((), attempt) = attempts(&host.name, ATTEMPTS_WITH_MANY_EXITS, || {
        let left: Vec<_> = (0..)
            .zip(boots.iter().zip(&scripts))
            .filter(|(number, _): &(usize, _)| !results.contains_key(number))
            .collect();
        let script: String = left
            .iter()
            .map(|(_, (_, script))| script.as_str())
            .collect();
        let whole = host.run(host.folder()?, &script, progress)?;
        let mut died = None;
        for (number, (boot, _)) in left {
            match boot
                .finished(&whole)
                .and_then(|finished| read(boot, &finished))
            {
                Ok(result) => {
                    results.insert(number, result);
                }
                Err(error) if error.is::<GuestDied>() => died = Some(error),
                Err(error) => return Err(error),
            }
        }
        died.map_or(Ok(()), Err)
    })?;
    Ok((results.into_values().collect(), attempt))
}

impl Boot {
    /// The part of the host's script that boots this one.
    fn script(&self, progress: &Progress) -> Result<String> {
        let Self {
            name,
            args,
            cmdline,
        } = self;
        let guest = Guest::prepare(args, cmdline, progress)?;
        let (work, results) = (format!("/run/lab-{name}"), format!("/job/{name}"));
        let busybox = Path::new("/run/busybox/busybox");
        let one = guest.script(args, Path::new(&work), Path::new(&results), busybox)?;
        Ok(format!(
            "echo {name}\nmkdir {results}\n(\n{one}) >{results}/output.log 2>&1\necho $? >{results}/status\n"
        ))
    }

    /// What this one left in a run of several.
    fn finished(&self, whole: &Finished) -> Result<Finished> {
        let folder = whole.folder.join(&self.name);
        Ok(Finished {
            status: fs::read_to_string(folder.join("status"))?.trim().parse()?,
            output: String::from_utf8_lossy(&fs::read(folder.join("output.log"))?).into_owned(),
            folder,
        })
    }
}
