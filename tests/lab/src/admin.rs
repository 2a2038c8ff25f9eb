//! The lab's own paths, under `/lab/`: what tests do with [`Core`], for other languages and for people.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::access::{Key, Role};
use crate::core::Core;
use crate::faults::Rule;
use crate::http::{Answer, Request};
use crate::scenario::{InstanceSpec, MissingType, VolumeSpec};

fn ok(value: &Value) -> Answer {
    Answer::new(200, "application/json", value.to_string())
}

fn body<T: serde::de::DeserializeOwned>(request: &Request) -> io::Result<T> {
    let text: &[u8] = if request.body.is_empty() { b"null" } else { &request.body };
    serde_json::from_slice(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

fn number(request: &Request, name: &str) -> io::Result<u64> {
    let number = request.query(name).and_then(|n| n.parse().ok());
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("?{name}= is missing")))
}

fn bytes(value: Vec<u8>) -> Answer {
    Answer::new(200, "application/octet-stream", value)
}

/// Answers a request.
pub fn handle(core: &Arc<Core>, request: &Request) -> Answer {
    answer(core, request).unwrap_or_else(|error| {
        let status = match error.kind() {
            io::ErrorKind::NotFound => 404,
            io::ErrorKind::InvalidInput => 400,
            _ => 500,
        };
        Answer::new(status, "application/json", json!({"error": error.to_string()}).to_string())
    })
}

fn answer(core: &Core, request: &Request) -> io::Result<Answer> {
    let path: Vec<&str> = request.path.trim_matches('/').split('/').skip(1).collect();
    Ok(match (request.method.as_str(), path.as_slice()) {
        ("GET", ["state"]) => ok(&core.dump()),
        ("GET", ["counts"]) => ok(&json!({"counts": core.calls.counts(), "usd": core.calls.cost_usd()})),
        ("GET", ["calls"]) => ok(&json!(core.calls.records())),
        ("DELETE", ["calls"]) => {
            core.calls.clear();
            ok(&Value::Null)
        }
        ("PUT", ["faults"]) => {
            core.faults.set(body::<Vec<Rule>>(request)?);
            ok(&Value::Null)
        }
        ("GET", ["faults"]) => ok(&json!(core.faults.struck())),
        ("GET", ["settings"]) => ok(&json!(core.settings())),
        ("PATCH" | "PUT", ["settings"]) => settings(core, request)?,
        ("POST", ["quotas", "refill"]) => {
            core.meters.refill();
            ok(&Value::Null)
        }
        ("PUT", ["keys"]) => {
            core.access.add_key(body::<Key>(request)?);
            ok(&Value::Null)
        }
        ("PUT", ["roles"]) => {
            core.access.add_role(body::<Role>(request)?);
            ok(&Value::Null)
        }
        ("PUT", ["policy", name]) => {
            let policy: Value = body(request)?;
            if !core.access.set_policy(name, Some(&policy).filter(|p| !p.is_null())) {
                return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such key or role"));
            }
            ok(&Value::Null)
        }
        ("PUT", ["kms", "denied"]) => {
            let keys: Vec<String> = body(request)?;
            core.deny_kms_keys(&keys.iter().map(String::as_str).collect::<Vec<_>>());
            ok(&Value::Null)
        }
        ("POST", ["advance"]) => {
            core.advance(Duration::from_millis(number(request, "ms")?));
            ok(&Value::Null)
        }
        ("POST", ["instances"]) => {
            let placed = core.add_instance(&body::<InstanceSpec>(request)?)?;
            ok(&json!({"instance": placed.instance, "volumes": placed.volumes}))
        }
        ("PUT", ["instances", id, "console"]) => {
            core.set_console(id, &String::from_utf8_lossy(&request.body))?;
            ok(&Value::Null)
        }
        ("PUT", ["instances", id, "impaired"]) => {
            core.set_impaired(id, body(request)?)?;
            ok(&Value::Null)
        }
        ("PUT", ["impair-new"]) => {
            core.impair_new(body(request)?);
            ok(&Value::Null)
        }
        ("PUT", ["missing-types"]) => {
            for missing in body::<Vec<MissingType>>(request)? {
                core.withhold_type(&missing.instance_type, &missing.zone);
            }
            ok(&Value::Null)
        }
        ("POST", ["volumes"]) => ok(&json!({"volume": core.add_volume(&body::<VolumeSpec>(request)?)?})),
        ("POST", ["volumes", id, "write"]) => {
            core.volume_write(id, number(request, "offset")?, &request.body)?;
            ok(&Value::Null)
        }
        ("POST", ["volumes", id, "load"]) => {
            core.volume_load(id, &PathBuf::from(request.query("file").unwrap_or_default()))?;
            ok(&Value::Null)
        }
        ("POST", ["volumes", id, "break-off"]) => {
            core.volume_break_off(id)?;
            ok(&Value::Null)
        }
        ("GET", ["volumes", id, "path"]) => ok(&json!({"path": core.volume_path(id)?})),
        ("GET", ["volumes", id, "read"]) => {
            bytes(core.volume_read(id, number(request, "offset")?, length(request)?)?)
        }
        ("GET", ["snapshots", id, "read"]) => {
            bytes(core.snapshot_read(id, number(request, "offset")?, length(request)?)?)
        }
        ("GET", ["snapshots", id, "blocks"]) => ok(&json!(core.snapshot_blocks(id)?)),
        _ => Answer::new(404, "application/json", "{\"error\": \"the lab has no such path\"}"),
    })
}

/// At most 64 MiB at a time.
fn length(request: &Request) -> io::Result<usize> {
    let length = number(request, "length")?;
    usize::try_from(length)
        .ok()
        .filter(|length| *length <= 64 << 20)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "?length= is at most 64 MiB"))
}

/// Puts the members of the body over those of the settings.
fn settings(core: &Core, request: &Request) -> io::Result<Answer> {
    fn over(below: &mut Value, above: Value) {
        match (below, above) {
            (Value::Object(below), Value::Object(above)) => {
                for (key, value) in above {
                    over(below.entry(key).or_insert(Value::Null), value);
                }
            }
            (below, above) => *below = above,
        }
    }
    let mut all = serde_json::to_value(core.settings())?;
    over(&mut all, body(request)?);
    let parse = |name: &str| all[name].clone();
    let (timing, limits, quotas) = (
        serde_json::from_value(parse("timing"))?,
        serde_json::from_value(parse("limits"))?,
        serde_json::from_value(parse("quotas"))?,
    );
    core.set(|settings| (settings.timing, settings.limits, settings.quotas) = (timing, limits, quotas));
    Ok(ok(&json!(core.settings())))
}
