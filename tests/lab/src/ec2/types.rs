//! Instance types that the lab knows.

use serde_json::{Value, json};

use super::Call;
use crate::api::{ApiError, ApiResult, Filters, page};
use crate::state::{Region, Tags};

/// What a type is: name, architecture, vCPUs, memory in MiB, EBS baseline and maximum in Mbit/s, GB of each disk of its own, and their number.
type Row = (&'static str, &'static str, u32, u32, u32, u32, u32, u32);

/// A few of each kind: Xen, Nitro with shared attachments, later with own ones, Graviton, with disks of their own.
const TYPES: [Row; 18] = [
    ("t2.micro", "x86_64", 1, 1024, 0, 0, 0, 0),
    ("m4.large", "x86_64", 2, 8192, 450, 450, 0, 0),
    ("t3.micro", "x86_64", 2, 1024, 87, 2085, 0, 0),
    ("t3.medium", "x86_64", 2, 4096, 347, 2085, 0, 0),
    ("t4g.medium", "arm64", 2, 4096, 347, 2085, 0, 0),
    ("m5.large", "x86_64", 2, 8192, 650, 4750, 0, 0),
    ("m5.xlarge", "x86_64", 4, 16_384, 1150, 4750, 0, 0),
    ("m5d.large", "x86_64", 2, 8192, 650, 4750, 75, 1),
    ("c5.large", "x86_64", 2, 4096, 650, 4750, 0, 0),
    ("c5n.xlarge", "x86_64", 4, 10_752, 1150, 4750, 0, 0),
    ("r5.large", "x86_64", 2, 16_384, 650, 4750, 0, 0),
    ("m6g.large", "arm64", 2, 8192, 630, 4750, 0, 0),
    ("m6i.large", "x86_64", 2, 8192, 650, 10_000, 0, 0),
    ("m6id.large", "x86_64", 2, 8192, 650, 10_000, 118, 1),
    ("m7i.large", "x86_64", 2, 8192, 650, 10_000, 0, 0),
    ("m7g.large", "arm64", 2, 8192, 630, 10_000, 0, 0),
    ("c7g.xlarge", "arm64", 4, 8192, 1250, 10_000, 0, 0),
    ("m7i.4xlarge", "x86_64", 16, 65_536, 5000, 10_000, 0, 0),
];

fn xen(name: &str) -> bool {
    name.starts_with("t2.") || name.starts_with("m4.")
}

/// 7th generation and later: attachments have a number of their own.
fn own_attachments(name: &str) -> bool {
    name.split('.').next().is_some_and(|family| family.contains('7'))
}

/// How many attachments a type has, and whether network interfaces and disks count among them.
pub fn attachments(name: &str, shared_limit: usize) -> (usize, bool) {
    if own_attachments(name) { (32, false) } else { (shared_limit, true) }
}

/// Architecture of a type.
pub fn architecture(name: &str) -> ApiResult<&'static str> {
    let row = TYPES.iter().find(|row| row.0 == name);
    row.map(|row| row.1).ok_or_else(|| {
        let message = format!("Invalid value '{name}' for InstanceType.");
        ApiError::value(message)
    })
}

/// Whether a type boots only images with the ENA driver.
pub fn needs_ena(name: &str) -> bool {
    !xen(name)
}

/// Disks of its own.
pub fn disks(name: &str) -> u32 {
    TYPES.iter().find(|row| row.0 == name).map_or(0, |row| row.7)
}

fn xml(row: &Row) -> Value {
    let &(name, architecture, cpus, memory_mib, baseline_mbps, maximum_mbps, disk_gb, disks) = row;
    let nitro = !xen(name);
    let modes = match (architecture, nitro) {
        ("arm64", _) => json!(["uefi"]),
        (_, true) => json!(["legacy-bios", "uefi"]),
        _ => json!(["legacy-bios"]),
    };
    let (most, shared) = attachments(name, 28);
    let mut answer = json!({
        "instanceType": name,
        "currentGeneration": nitro,
        "freeTierEligible": name.ends_with(".micro"),
        "supportedUsageClasses": ["on-demand", "spot"],
        "supportedRootDeviceTypes": ["ebs"],
        "supportedVirtualizationTypes": ["hvm"],
        "bareMetal": false,
        "hypervisor": if nitro { "nitro" } else { "xen" },
        "processorInfo": {"supportedArchitectures": [architecture]},
        "vCpuInfo": {"defaultVCpus": cpus},
        "memoryInfo": {"sizeInMiB": memory_mib},
        "instanceStorageSupported": disks > 0,
        "ebsInfo": {
            "ebsOptimizedSupport": if baseline_mbps > 0 { "default" } else { "unsupported" },
            "encryptionSupport": "supported",
            "nvmeSupport": if nitro { "required" } else { "unsupported" },
            "maximumEbsAttachments": if nitro { most } else { 39 },
            "attachmentLimitType": if shared { "shared" } else { "dedicated" },
        },
        "networkInfo": {
            "networkPerformance": "Up to 10 Gigabit", "maximumNetworkInterfaces": 3, "maximumNetworkCards": 1,
            "ipv4AddressesPerInterface": 10, "enaSupport": if nitro { "required" } else { "unsupported" },
        },
        "burstablePerformanceSupported": name.starts_with('t'),
        "supportedBootModes": modes,
        "nitroTpmSupport": if nitro && architecture == "x86_64" { "supported" } else { "unsupported" },
    });
    if baseline_mbps > 0 {
        answer["ebsInfo"]["ebsOptimizedInfo"] = json!({
            "baselineBandwidthInMbps": baseline_mbps,
            "baselineThroughputInMBps": f64::from(baseline_mbps) / 8.0,
            "baselineIops": 3600,
            "maximumBandwidthInMbps": maximum_mbps,
            "maximumThroughputInMBps": f64::from(maximum_mbps) / 8.0,
            "maximumIops": 18_750,
        });
    }
    if disks > 0 {
        answer["instanceStorageInfo"] = json!({
            "totalSizeInGB": disk_gb * disks, "nvmeSupport": "required", "encryptionSupport": "required",
            "disks": [{"sizeInGB": disk_gb, "count": disks, "type": "ssd"}],
        });
    }
    answer
}

pub(super) fn describe(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    let filters = Filters::of(call.params)?;
    filters.check(&[
        "instance-type",
        "processor-info.supported-architecture",
        "current-generation",
        "hypervisor",
    ])?;
    let wanted = call.params.list("InstanceType");
    if let Some(unknown) = wanted.iter().find(|name| architecture(name).is_err()) {
        let message = format!("The following supplied instance types do not exist: [{unknown}]");
        return Err(ApiError::client("InvalidInstanceType", message));
    }
    let mut found = Vec::new();
    for row in &TYPES {
        let field = |name: &str| match name {
            "instance-type" => Some(vec![row.0.to_owned()]),
            "processor-info.supported-architecture" => Some(vec![row.1.to_owned()]),
            "current-generation" => Some(vec![(!xen(row.0)).to_string()]),
            "hypervisor" => Some(vec![if xen(row.0) { "xen" } else { "nitro" }.to_owned()]),
            _ => None,
        };
        let named = wanted.is_empty() || wanted.iter().any(|w| w == row.0);
        if named && filters.pass(&Tags::new(), field)? {
            found.push(row);
        }
    }
    found.sort_by_key(|row| row.0);
    let page = page::page(call.params, found, |row| row.0, (5, 100), call.settings.limits.empty_page_every)?;
    let set: Vec<Value> = page.items.into_iter().map(xml).collect();
    Ok(json!({"instanceTypeSet": set, "nextToken": page.next}))
}

/// Refuses a type that is not to be had in a zone.
pub fn check_offered(region: &Region, zone: &str, name: &str) -> ApiResult<()> {
    let offered = |zone: &str| !region.missing_types.contains(&(zone.to_owned(), name.to_owned()));
    if offered(zone) {
        return Ok(());
    }
    let others: Vec<&str> = region.zones.iter().map(|z| z.name.as_str()).filter(|z| offered(z)).collect();
    let message = format!(
        "Your requested instance type ({name}) is not supported in your requested Availability Zone ({zone}). Please retry your request by not specifying an Availability Zone or choosing {}.",
        others.join(", ")
    );
    Err(ApiError::client("Unsupported", message))
}

/// Types by place: the region, its zones by name or by id.
pub(super) fn offerings(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    let filters = Filters::of(call.params)?;
    filters.check(&["instance-type", "location"])?;
    let kind = call.params.get("LocationType").unwrap_or("region");
    call.with(|region| {
        // what a place is called, and the zones in it
        let zones = || region.zones.iter();
        let places: Vec<(String, Vec<&str>)> = match kind {
            "region" => vec![(region.name.clone(), zones().map(|z| z.name.as_str()).collect())],
            "availability-zone" => zones().map(|z| (z.name.clone(), vec![z.name.as_str()])).collect(),
            "availability-zone-id" => zones().map(|z| (z.id.clone(), vec![z.name.as_str()])).collect(),
            "outpost" => Vec::new(),
            other => {
                return Err(ApiError::value(format!("Value ({other}) for parameter locationType is invalid.")));
            }
        };
        let mut found = Vec::new();
        for (row, (place, zones)) in TYPES.iter().flat_map(|row| places.iter().map(move |place| (row, place))) {
            let field = |name: &str| match name {
                "instance-type" => Some(vec![row.0.to_owned()]),
                "location" => Some(vec![place.clone()]),
                _ => None,
            };
            let offered = zones.iter().any(|zone| check_offered(region, zone, row.0).is_ok());
            if offered && filters.pass(&Tags::new(), field)? {
                found.push((format!("{} {place}", row.0), row.0, place));
            }
        }
        found.sort();
        let every = call.settings.limits.empty_page_every;
        let page = page::page(call.params, found, |offer| &offer.0, (5, 1000), every)?;
        let offer = |(_, name, place): (String, &str, &String)| json!({"instanceType": name, "locationType": kind, "location": place});
        let set: Vec<Value> = page.items.into_iter().map(offer).collect();
        Ok(json!({"instanceTypeOfferingSet": set, "nextToken": page.next}))
    })
}
