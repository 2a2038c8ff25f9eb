//! `penstock-lab`: the lab as a program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use penstock_lab::{Devices, Lab, Options, Quotas, Scenario, Timing};
use serde_json::json;

/// A server that behaves like AWS EC2, EBS, STS and IMDSv2 for what penstock does with them.
///
/// Prints one line of JSON when it is ready, and runs until it is interrupted. See docs/LAB.md.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen; a free port of 127.0.0.1 by default.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Directory of volumes, blocks and devices; a temporary one by default. What an earlier lab left in it is removed.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Region of the scenario; us-east-1 by default.
    #[arg(long)]
    region: Option<String>,
    /// The account at the start, as JSON.
    #[arg(long)]
    scenario: Option<PathBuf>,
    /// All options as JSON, as docs/LAB.md lists them; the others here come on top.
    #[arg(long)]
    options: Option<PathBuf>,
    /// Append every call to this file, a line of JSON each.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Seed of ids, tokens and faults; 1 by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Every state is reached at once.
    #[arg(long)]
    instant: bool,
    /// No request quotas.
    #[arg(long)]
    no_quotas: bool,
    /// What attached volumes are: loop devices (needs root), plain files, or nothing.
    #[arg(long, value_parser = ["loop", "file", "none"])]
    devices: Option<String>,
}

fn read<T: serde::de::DeserializeOwned>(path: &PathBuf) -> Result<T, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn options(arguments: Arguments) -> Result<Options, String> {
    let mut options: Options = arguments.options.as_ref().map_or_else(|| Ok(Options::default()), read)?;
    options.listen = arguments.listen.unwrap_or(options.listen);
    options.root = arguments.root.or(options.root);
    options.region = arguments.region.unwrap_or(options.region);
    options.seed = arguments.seed.unwrap_or(options.seed);
    options.log = arguments.log.or(options.log);
    if let Some(path) = &arguments.scenario {
        options.scenario = read::<Scenario>(path)?;
    }
    if arguments.instant {
        options.timing = Timing::instant();
    }
    if arguments.no_quotas {
        options.quotas = Quotas::off();
    }
    match arguments.devices.as_deref() {
        Some("loop") => options.devices = Devices::Loop,
        Some("file") => options.devices = Devices::File,
        Some(_) => options.devices = Devices::None,
        None => {}
    }
    Ok(options)
}

fn run() -> Result<(), String> {
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ])
    .map_err(|e| e.to_string())?;
    let lab = Lab::start(options(Arguments::parse())?).map_err(|e| e.to_string())?;
    let env: serde_json::Map<String, serde_json::Value> =
        lab.env().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let ready = json!({
        "ready": true, "endpoint": lab.endpoint(), "proxy": lab.proxy_id(),
        "dev": lab.dev_dir(), "sys": lab.sys_dir(), "root": lab.root, "env": env,
    });
    println!("{ready}");
    for (name, value) in lab.env() {
        eprintln!("export {name}={value}");
    }
    signals.forever().next();
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("penstock-lab: {message}");
            ExitCode::FAILURE
        }
    }
}
