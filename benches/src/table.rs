//! Costs of steps, the roofline they make, and the tables that are printed.

use crate::meter::Used;

/// What one step costs, in relation to a byte of the volume.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// CPU seconds a byte: of one core while the others idle; of the whole machine for steps that the kernel does.
    pub alone: f64,
    /// The same with every core at it: cores share memory bandwidth. Equal to `alone` for steps that the kernel does.
    pub at_once: f64,
    /// Bytes of the volume a second that the device or the store allows, whatever the CPU.
    pub limit: Option<f64>,
}

impl Step {
    /// A step of the kernel, which `used` was measured for; `bytes` of the volume stand behind it.
    pub fn device(name: &'static str, used: Used, bytes: f64) -> Self {
        Self {
            name,
            alone: used.machine / bytes,
            at_once: used.machine / bytes,
            limit: Some(bytes / used.wall),
        }
    }

    /// A step of our own, from its CPU seconds with one core and with all.
    pub fn own(name: &'static str, (alone, at_once): (f64, f64), bytes: f64) -> Self {
        let (alone, at_once) = (alone.max(0.0) / bytes, at_once.max(0.0) / bytes);
        Self { name, alone, at_once, limit: None }
    }
}

/// The most that steps allow, in bytes of the volume a second.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// min(limits, cores ÷ Σ alone).
    pub rate: f64,
    /// Which of them it is.
    pub bound: &'static str,
}

/// The roofline of these steps.
pub fn roofline(steps: &[Step], cores: usize) -> Roofline {
    let limits = steps.iter().filter_map(|s| s.limit.map(|limit| (limit, s.name)));
    let cpu = (cores as f64 / steps.iter().map(|s| s.alone).sum::<f64>(), "cores");
    let (rate, bound) = limits.chain([cpu]).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or(cpu);
    Roofline { rate, bound }
}

/// Steps as a Markdown table; costs in milliseconds of a core per GB (10^9 bytes) of the volume.
pub fn print_steps(title: &str, steps: &[Step]) {
    println!(
        "\n| {title}: step | ms a GB, one core | all cores at it | rate of one core, GB/s | device allows, GB/s |"
    );
    println!("|---|---|---|---|---|");
    for step in steps {
        let limit = step.limit.map_or(String::new(), |limit| format!("{:.2}", limit / 1e9));
        println!(
            "| {} | {:.0} | {:.0} | {:.2} | {limit} |",
            step.name,
            step.alone * 1e12,
            step.at_once * 1e12,
            1.0 / step.alone / 1e9
        );
    }
    let sum = |cost: fn(&Step) -> f64| steps.iter().map(cost).sum::<f64>();
    println!(
        "| **sum** | {:.0} | {:.0} | {:.2} | |",
        sum(|s| s.alone) * 1e12,
        sum(|s| s.at_once) * 1e12,
        1.0 / sum(|s| s.alone) / 1e9
    );
}

/// One line of the final table.
pub struct Row {
    /// What ran.
    pub name: String,
    /// Bytes of the volume.
    pub bytes: f64,
    /// The median round.
    pub used: Used,
    /// `None` if the steps were not measured.
    pub roofline: Option<Roofline>,
}

/// The final table.
pub fn print_rows(rows: &[Row]) {
    println!(
        "\n| workload | GB/s | GB/s a core | GB/s a core of the machine | roofline GB/s (bound by) | reached |"
    );
    println!("|---|---|---|---|---|---|");
    for Row { name, bytes, used, roofline } in rows {
        let rate = bytes / used.wall;
        print!(
            "| {name} | {:.2} | {:.2} | {:.2} |",
            rate / 1e9,
            bytes / used.process / 1e9,
            bytes / used.machine / 1e9
        );
        match roofline {
            Some(roof) => {
                println!(" {:.2} ({}) | {:.0} % |", roof.rate / 1e9, roof.bound, rate / roof.rate * 100.0);
            }
            None => println!(" | |"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bound_is_the_roofline() {
        let used = Used { wall: 1.0, process: 0.2, machine: 0.5 };
        let steps = [Step::device("read", used, 4e9), Step::own("hash", (0.5, 1.5), 4e9)];
        let roof = roofline(&steps, 2);
        assert_eq!((roof.bound, roof.rate.round()), ("read", 4e9));
        let slow = [steps[0].clone(), Step::own("zstd", (7.5, 7.5), 4e9)];
        let roof = roofline(&slow, 2);
        assert_eq!((roof.bound, roof.rate.round()), ("cores", 1e9));
    }
}
