//! Manages physical and virtual functions: `sriov list`, `enable`, `disable`, `bind`, `release`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use sriov_vfio::sysfs::{Files, Function, PciAddress, Role, Sysfs};

/// How long `--up` waits for a link.
const LINK: Duration = Duration::from_secs(30);

/// Manages SR-IOV functions and who drives them.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where sysfs is.
    #[arg(long, default_value = "/sys", value_name = "FOLDER")]
    sysfs: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List functions with SR-IOV and their virtual functions.
    List {
        /// List all functions.
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Enable N virtual functions of PF. If another number exists, those are disabled before.
    Enable {
        /// The physical function, like 0000:04:00.0.
        pf: PciAddress,
        /// How many.
        n: u16,
        /// Leave the virtual functions without driver.
        #[arg(long)]
        no_driver: bool,
        /// Bring the physical function's network interface up before, and wait for its link.
        #[arg(long)]
        up: bool,
    },
    /// Disable all virtual functions of PF.
    Disable {
        /// The physical function.
        pf: PciAddress,
    },
    /// Give a function to vfio-pci, for a VMM to use.
    Bind {
        /// The function.
        bdf: PciAddress,
        /// Another driver of VFIO's kind.
        #[arg(long, default_value = "vfio-pci")]
        driver: String,
    },
    /// Give a function back to the host.
    Release {
        /// The function.
        bdf: PciAddress,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sriov: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let sysfs = Sysfs::new(cli.sysfs, Arc::new(Files));
    let mut out = std::io::stdout().lock();
    match cli.command {
        Command::List { all, json } => {
            let mut functions = sysfs.functions()?;
            functions.retain(|function| all || function.role != Role::Plain);
            if json {
                writeln!(out, "{}", serde_json::to_string_pretty(&functions)?)?;
            } else {
                for function in &functions {
                    print(&mut out, &sysfs, function)?;
                }
            }
        }
        Command::Enable {
            pf,
            n,
            no_driver,
            up,
        } => {
            if up {
                sysfs.bring_up(pf)?;
                sysfs.wait_for_link(pf, LINK)?;
            }
            if no_driver {
                sysfs.set_autoprobe(pf, false)?;
            }
            let enabled = sysfs.enable(pf, n);
            if no_driver {
                sysfs.set_autoprobe(pf, true)?;
            }
            let enabled = enabled?;
            if up {
                sysfs.wait_for_link(pf, LINK)?;
            }
            for function in enabled {
                writeln!(out, "{function}")?;
            }
        }
        Command::Disable { pf } => sysfs.disable(pf)?,
        Command::Bind { bdf, driver } => {
            sysfs.bind(bdf, &driver)?;
            let function = sysfs.function(bdf)?;
            if let Some(group) = function.group {
                writeln!(out, "/dev/vfio/{group}")?;
            }
            if let Some(physical) = sysfs.token_holder(&function)? {
                eprintln!(
                    "sriov: {bdf} needs the VF token that was set with {physical}: reference-vmm --vfio {bdf},vf-token=UUID"
                );
            }
            if matches!(function.role, Role::Physical { .. }) {
                eprintln!(
                    "sriov: for others to have virtual functions of it, set a VF token: reference-vmm --vfio {bdf},vf-token=UUID"
                );
            }
        }
        Command::Release { bdf } => sysfs.release(bdf)?,
    }
    Ok(())
}

/// One line: address, IDs, driver, group and who else is in it, and what it is to SR-IOV.
fn print(out: &mut impl Write, sysfs: &Sysfs, function: &Function) -> Result<()> {
    let Function {
        address,
        vendor,
        device,
        driver,
        group,
        ..
    } = function;
    let driver = driver.as_deref().unwrap_or("-");
    write!(out, "{address} {vendor:04x}:{device:04x} driver {driver}")?;
    match group {
        Some(group) => write!(out, ", group {group}")?,
        None => write!(out, ", no IOMMU group")?,
    }
    for &other in &function.group_others {
        let driver = sysfs.function(other)?.driver;
        let driver = driver.as_deref().unwrap_or("no driver");
        write!(out, " with {other} ({driver})")?;
    }
    match &function.role {
        Role::Plain => {}
        Role::Physical {
            total, functions, ..
        } => write!(out, ", {} of {total} virtual functions", functions.len())?,
        Role::Virtual { physical } => write!(out, ", virtual function of {physical}")?,
    }
    writeln!(out)?;
    Ok(())
}
