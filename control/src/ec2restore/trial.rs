//! A restored instance is tried: AWS's own checks, a TCP port, a command of the user's. It is alone: its security group lets nothing out, and nothing in but
//! what the check asks.

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Result;
use crate::aws::clients::Clients;
use crate::aws::error::{AwsError, Kind};
use crate::aws::{launch, network};
use crate::ec2run::journal::Thing;
use crate::ec2run::ledger::Ledger;

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(5);
/// The first ones come sooner: an instance of a laboratory is ready at once.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// Characters of the console in a report.
const CONSOLE_TAIL: usize = 2000;

/// How an instance is tried.
#[derive(Clone, Debug, Default)]
pub struct Trial {
    /// A TCP port that has to answer.
    pub port: Option<u16>,
    /// A command that has to succeed; it finds PENSTOCK_INSTANCE and PENSTOCK_ADDRESS in its environment.
    pub command: Option<String>,
    /// Time for all of it.
    pub time: Duration,
    /// The address that the checks come from.
    pub from: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether it works.
    pub passed: bool,
    /// AWS's check of the instance: `ok`, `impaired`, …
    pub instance_status: String,
    /// AWS's check of the host below it.
    pub system_status: String,
    /// Whether the port answered.
    pub tcp: Option<bool>,
    /// The command's exit code; null if there was none, or it was ended.
    pub command_exit: Option<i32>,
    /// What went wrong.
    pub why: Option<String>,
    /// What the serial console said last, where something went wrong.
    pub console: Option<String>,
    /// From the launch on.
    pub duration_ms: u64,
}

/// Makes the group that isolates it.
pub async fn closed_group(aws: &Clients, ledger: &Ledger, subnet: &str, trial: &Trial) -> Result<String> {
    if let Some(id) = ledger.known("group") {
        return Ok(id);
    }
    let found = network::subnets(aws, &[subnet.to_owned()], &[]).await?.pop();
    let vpc = found.map(|s| s.vpc).unwrap_or_default();
    let ask = ledger.asks(Thing::Group)?;
    let name = format!("penstock-trial-{}", ledger.tags.run);
    let id = network::make_closed_group(aws, &vpc, &name, &ledger.tags.temporary()).await?;
    ledger.made_as(ask, Thing::Group, &id, "group")?;
    network::close_egress(aws, &id).await?;
    if let (Some(port), Some(from)) = (trial.port, &trial.from) {
        network::open_port(aws, &id, from, port).await?;
    }
    Ok(id)
}

/// Tries it. What does not work is a verdict, not an error.
pub async fn run(aws: &Clients, instance: &str, address: Option<&str>, trial: &Trial) -> Result<Verdict> {
    let started = Instant::now();
    let end = started + trial.time;
    let mut verdict = Verdict {
        passed: false,
        instance_status: String::new(),
        system_status: String::new(),
        tcp: None,
        command_exit: None,
        why: None,
        console: None,
        duration_ms: 0,
    };
    let tried = checks(aws, instance, address, trial, end, &mut verdict).await;
    match tried {
        Ok(()) => verdict.passed = true,
        Err(Failed::Aws(error)) if error.kind == Kind::Cancelled => return Err(error.into()),
        Err(Failed::Aws(error)) => verdict.why = Some(error.to_string()),
        Err(Failed::Check(why)) => verdict.why = Some(why),
    }
    if !verdict.passed {
        let said = launch::console(aws, instance).await.unwrap_or_default();
        let from = said.floor_char_boundary(said.len().saturating_sub(CONSOLE_TAIL));
        verdict.console = Some(said[from..].to_owned()).filter(|text| !text.is_empty());
    }
    verdict.duration_ms = started.elapsed().as_millis() as u64;
    Ok(verdict)
}

enum Failed {
    Aws(AwsError),
    Check(String),
}

impl From<AwsError> for Failed {
    fn from(error: AwsError) -> Self {
        Failed::Aws(error)
    }
}

async fn checks(
    aws: &Clients,
    instance: &str,
    address: Option<&str>,
    trial: &Trial,
    end: Instant,
    verdict: &mut Verdict,
) -> std::result::Result<(), Failed> {
    let mut pause = PAUSE_FIRST;
    loop {
        let found = launch::checks(aws, instance).await?;
        (verdict.instance_status, verdict.system_status) = (found.instance, found.system);
        if verdict.instance_status == "ok" && verdict.system_status == "ok" {
            break;
        }
        if verdict.instance_status == "impaired"
            || verdict.system_status == "impaired"
            || Instant::now() > end
        {
            let (one, other) = (&verdict.instance_status, &verdict.system_status);
            return Err(Failed::Check(format!(
                "AWS's check of the instance says {one}, that of its host {other}, after {} s",
                trial.time.saturating_sub(end.saturating_duration_since(Instant::now())).as_secs()
            )));
        }
        aws.retry.pause("DescribeInstanceStatus", pause).await?;
        pause = (pause * 2).min(PAUSE);
    }
    if let Some(port) = trial.port {
        let Some(address) = address else {
            return Err(Failed::Check("the instance has no address to connect to".into()));
        };
        let answers = answers(aws, address, port, end).await?;
        verdict.tcp = Some(answers);
        if !answers {
            return Err(Failed::Check(format!("nothing answers on {address} port {port}")));
        }
    }
    if let Some(command) = &trial.command {
        verdict.command_exit = command_exit(aws, command, instance, address, end).await?;
        if verdict.command_exit != Some(0) {
            return Err(Failed::Check(match verdict.command_exit {
                Some(code) => format!("the command ended with exit code {code}"),
                None => "the command did not end in time".into(),
            }));
        }
    }
    Ok(())
}

async fn answers(
    aws: &Clients,
    address: &str,
    port: u16,
    end: Instant,
) -> std::result::Result<bool, AwsError> {
    let Some(to): Option<SocketAddr> =
        (address, port).to_socket_addrs().ok().and_then(|mut found| found.next())
    else {
        return Ok(false);
    };
    loop {
        let connected = tokio::time::timeout(CONNECT_TIME, tokio::net::TcpStream::connect(to)).await;
        if matches!(connected, Ok(Ok(_))) {
            return Ok(true);
        }
        if Instant::now() > end {
            return Ok(false);
        }
        aws.retry.pause("connect", Duration::from_secs(1)).await?;
    }
}

/// By the shell; its output goes where this program's messages go.
async fn command_exit(
    aws: &Clients,
    command: &str,
    instance: &str,
    address: Option<&str>,
    end: Instant,
) -> std::result::Result<Option<i32>, Failed> {
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", command])
        .env("PENSTOCK_INSTANCE", instance)
        .env("PENSTOCK_ADDRESS", address.unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .spawn()
        .map_err(|error| Failed::Check(format!("/bin/sh cannot be run: {error}")))?;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(Some(status.code().unwrap_or(-1))),
            Ok(None) => {}
            Err(error) => return Err(Failed::Check(format!("the command cannot be waited for: {error}"))),
        }
        let stopped = aws.retry.pause("command", Duration::from_millis(100)).await;
        if stopped.is_err() || Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return stopped.map(|()| None).map_err(Failed::Aws);
        }
    }
}
