//! Which of the CPU and OpenVINO `--device auto` becomes where no card computes: the one that was measured to be done first.
//!
//! The two are different libraries, of which a process holds one: each is measured in a process of its own (`measure.rs`), and what was found
//! is kept (`speeds.rs`).

use crate::models::Bundle;
use crate::pipeline::{Existing, Interrupt, Output, Reporter, WorkFolder};
use crate::runtime::{self, Device, Precision};

mod measure;
mod speeds;

pub use measure::{Timed, answer};
use speeds::{Contest, Speeds};

/// Work that a device is chosen for.
pub struct Work<'a> {
    pub bundle: &'a Bundle,
    pub precision: Precision,
    pub threads: Option<usize>,
    /// What made the results that are gone on from.
    pub earlier: Option<Device>,
    /// Whether there are at least so many images.
    pub has_images: &'a dyn Fn(u64) -> bool,
}

/// The device that results of earlier runs were computed on, which a run that goes on from them takes: an unfinished run's, or the finished
/// output's unless that is overwritten.
pub fn earlier_device(output: &Output, format: &str, overwrite: bool) -> Option<Device> {
    let begun = WorkFolder::settings_in(&output.work_folder()).ok().flatten();
    let finished = match output.existing(format) {
        Ok(Existing::Finished(settings)) if !overwrite => Some(settings),
        _ => None,
    };
    [begun, finished].into_iter().flatten().find_map(|settings| settings.settings["model"]["device"].as_str()?.parse().ok())
}

/// `Device::OpenVino`, or `Device::Auto`, for which the runtime's own rule holds: CUDA if it is usable, else the CPU. Says which of the two it
/// is and why wherever there was a choice.
pub fn choose(work: &Work<'_>, reporter: &dyn Reporter, interrupt: &Interrupt) -> Device {
    // A card comes first.
    if work.precision != Precision::Int8 && runtime::cards().is_ok() {
        return Device::Auto;
    }
    if work.precision == Precision::Bf16 && runtime::library_of(Device::OpenVino).is_some() {
        reporter.note("--device auto: openvino, which computes bf16 here (the CPU provider does not)");
        return Device::OpenVino;
    }
    let Some(contest) = Contest::of(work.bundle, work.precision, work.threads) else {
        return Device::Auto;
    };
    match work.earlier {
        None => {}
        Some(Device::OpenVino) => {
            reporter.note("--device auto: openvino, which computed what is there already");
            return Device::OpenVino;
        }
        Some(device) => {
            reporter.detail(&format!("--device auto: {device} computed what is there already"));
            return Device::Auto;
        }
    }
    let speeds = match contest.kept() {
        Some(speeds) => speeds,
        None if !(work.has_images)(contest.images_worth_measuring(work.bundle)) => {
            reporter.detail("--device auto: cpu; openvino is not measured for so little work (`doctor --model` measures it)");
            return Device::Auto;
        }
        None => {
            reporter.note("--device auto: measuring cpu and openvino for a few seconds, once");
            let speeds = measure::speeds(&contest, work.bundle, interrupt);
            if interrupt.is_set() {
                return Device::Auto;
            }
            keep(&contest, &speeds, reporter);
            speeds
        }
    };
    let (device, why) = speeds.choice(work.has_images);
    reporter.note(&format!("--device auto: {why}"));
    if speeds.failure.is_none() {
        reporter.detail(&format!("--device auto: {}", speeds.starts()));
    }
    if device == Device::OpenVino { device } else { Device::Auto }
}

/// Measures anew, for `doctor`: what was found in a line, and as JSON. None where there is no choice.
pub fn measured_anew(
    bundle: &Bundle,
    precision: Precision,
    threads: Option<usize>,
    reporter: &dyn Reporter,
) -> Option<(String, serde_json::Value)> {
    if precision != Precision::Int8 && runtime::cards().is_ok() {
        return None;
    }
    let contest = Contest::of(bundle, precision, threads)?;
    let speeds = measure::speeds(&contest, bundle, &Interrupt::default());
    keep(&contest, &speeds, reporter);
    let (device, why) = speeds.choice(&|_| true);
    let file = contest.file().filter(|_| !speeds.is_late);
    let text = match &file {
        Some(file) => format!("{why} (kept in {})", file.display()),
        None => why,
    };
    Some((text, serde_json::json!({"device": device.to_string(), "speeds": speeds, "file": file})))
}

/// What cannot be kept is measured again by the next run, and so is what took too long.
fn keep(contest: &Contest, speeds: &Speeds, reporter: &dyn Reporter) {
    if speeds.is_late {
        return;
    }
    if let Err(error) = contest.keep(speeds) {
        reporter.warn(&format!("--device auto: what was measured cannot be kept, and the next run measures again: {error:#}"));
    }
}
