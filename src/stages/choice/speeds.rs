//! What was measured of the two devices, and the file that keeps it.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::files::{self, Checked, ContentHash, read_checked_json, write_checked_json};
use crate::models::Bundle;
use crate::runtime::{self, Device, Precision};
use crate::stages::loading::{cpu_type, lacks_static_scales};

const FORMAT: &str = "device-speeds/1";

/// How fast an encoder is on one device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Until the encoder is loaded.
    pub start_seconds: f64,
    pub images_per_second: f64,
}

/// How fast it is on both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speeds {
    pub cpu: Option<Speed>,
    pub openvino: Option<Speed>,
    /// Why one of the two is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// It took too long, which a machine with less to do may not repeat.
    #[serde(skip)]
    pub is_late: bool,
}

impl Speeds {
    /// The device that is done first with work of so many images, and why.
    pub fn choice(&self, has_images: &dyn Fn(u64) -> bool) -> (Device, String) {
        let (Some(cpu), Some(openvino)) = (self.cpu, self.openvino) else {
            let failure = self.failure.as_deref().unwrap_or("it was not measured");
            return (Device::Cpu, format!("cpu, because openvino could not be compared with it: {failure}"));
        };
        let figures = format!("{:.1} images/s on openvino, {:.1} on cpu", openvino.images_per_second, cpu.images_per_second);
        // Seconds that each image is done sooner, and that the first one begins later.
        let sooner = 1.0 / cpu.images_per_second - 1.0 / openvino.images_per_second;
        let later = (openvino.start_seconds - cpu.start_seconds).max(0.0);
        if sooner.is_nan() || sooner <= 0.0 {
            return (Device::Cpu, format!("cpu ({figures})"));
        }
        // A float beyond the range of u64 becomes the largest.
        let least = (later / sooner).ceil() as u64;
        match has_images(least) {
            true => (Device::OpenVino, format!("openvino ({figures})")),
            false => (
                Device::Cpu,
                format!(
                    "cpu ({figures}; openvino, which takes {later:.1} s longer to start, is the faster from {least} images on)"
                ),
            ),
        }
    }

    /// How long each takes to start.
    pub fn starts(&self) -> String {
        let start = |speed: Option<Speed>| speed.map_or("unknown".into(), |speed| format!("{:.1} s", speed.start_seconds));
        format!("to start: openvino {}, cpu {}", start(self.openvino), start(self.cpu))
    }
}

/// What a measurement is of: where any of it differs, another is made.
#[derive(Debug, Clone)]
pub struct Contest {
    pub precision: Precision,
    pub threads: usize,
    /// All of it.
    subject: Json,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(rename = "clipcap.format")]
    format: String,
    subject: Json,
    speeds: Speeds,
}

impl Contest {
    /// None where one of the two devices is not there, cannot compute the bundle in this precision, or one library was named for all.
    pub fn of(bundle: &Bundle, precision: Precision, threads: Option<usize>) -> Option<Self> {
        let are_able = match precision {
            Precision::Fp32 => true,
            Precision::Int8 => bundle.manifest().int8.is_some() && !lacks_static_scales(bundle),
            Precision::Bf16 | Precision::Fp16 => false,
        };
        if !are_able {
            return None;
        }
        let libraries = [Device::Auto, Device::OpenVino].map(runtime::library_of);
        let [Some(cpu), Some(openvino)] = libraries else { return None };
        let threads = runtime::threads(threads);
        let subject = json!({
            "encoder": bundle.embedding_fingerprint(),
            "int8": bundle.manifest().int8.as_ref().filter(|_| precision == Precision::Int8).map(|int8| &int8.fingerprint),
            "precision": precision.to_string(),
            "threads": threads,
            "cpu": cpu_type(),
            "libraries": {"cpu": identity(&cpu), "openvino": identity(&openvino)},
            "clipcap": env!("CARGO_PKG_VERSION"),
        });
        Some(Self { precision, threads, subject })
    }

    /// Where it is kept: `~/.cache/clipcap/devices/`; nowhere without a home.
    pub fn file(&self) -> Option<PathBuf> {
        let name = format!("{:.16}", ContentHash::of(self.subject.to_string()));
        Some(files::cache_folder()?.join("devices").join(format!("{name}.json")))
    }

    /// What was measured before.
    pub fn kept(&self) -> Option<Speeds> {
        match read_checked_json::<Kept>(&self.file()?) {
            Ok(Checked::Whole(kept, true)) if kept.format == FORMAT && kept.subject == self.subject => Some(kept.speeds),
            _ => None,
        }
    }

    /// Keeps what was measured.
    ///
    /// # Errors
    /// A full disk, or a folder that may not be written.
    pub fn keep(&self, speeds: &Speeds) -> Result<()> {
        let Some(path) = self.file() else { return Ok(()) };
        let kept = Kept { format: FORMAT.into(), subject: self.subject.clone(), speeds: speeds.clone() };
        write_checked_json(&path, &kept).with_context(|| format!("cannot write {}", path.display()))
    }

    /// How many images make about half a minute of work, by the size of the encoder: for less, measuring costs more than it can save.
    pub fn images_worth_measuring(&self, bundle: &Bundle) -> u64 {
        const SECONDS: f64 = 30.0;
        (SECONDS / seconds_per_image(bundle, self.threads)).ceil() as u64
    }
}

/// Very roughly, and rather too little: each weight is multiplied for each of some fifty patches, 25 billion times a second on a core.
pub fn seconds_per_image(bundle: &Bundle, threads: usize) -> f64 {
    const PATCHES: f64 = 50.0;
    const PER_CORE: f64 = 25e9;
    let weights = bundle.num_image_weights() as f64;
    (weights * PATCHES / (PER_CORE * threads as f64)).max(1e-9)
}

/// A library without loading it: another release has another name, size or time.
fn identity(library: &Path) -> Json {
    let real = library.canonicalize().unwrap_or_else(|_| library.into());
    let metadata = real.metadata().ok();
    let modified = metadata.as_ref().and_then(|m| m.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    json!({"path": real, "bytes": metadata.map(|m| m.len()), "modified_s": modified.map(|time| time.as_secs())})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speeds(cpu: [f64; 2], openvino: [f64; 2]) -> Speeds {
        let speed = |[start_seconds, images_per_second]: [f64; 2]| Some(Speed { start_seconds, images_per_second });
        Speeds { cpu: speed(cpu), openvino: speed(openvino), failure: None, is_late: false }
    }

    #[test]
    fn who_is_done_first_is_taken() {
        // Twice as fast and two seconds later: even at 40 images.
        let fast = speeds([0.5, 10.0], [2.5, 20.0]);
        let of = |speeds: &Speeds, images: u64| speeds.choice(&|least| images >= least);
        assert_eq!(of(&fast, 40).0, Device::OpenVino);
        let (device, why) = of(&fast, 39);
        assert_eq!(device, Device::Cpu);
        assert!(why.contains("20.0 images/s on openvino, 10.0 on cpu") && why.contains("from 40 images on"), "{why}");
        assert_eq!(of(&speeds([0.5, 10.0], [0.1, 9.9]), u64::MAX).0, Device::Cpu);
        assert_eq!(of(&speeds([0.5, 10.0], [0.1, 10.0]), u64::MAX).0, Device::Cpu);
        assert_eq!(of(&speeds([0.5, 10.0], [0.1, 11.0]), 1).0, Device::OpenVino);
    }

    #[test]
    fn what_failed_or_is_no_number_is_the_cpu() {
        let failed = Speeds { openvino: None, failure: Some("openvino took too long".into()), ..speeds([1.0, 1.0], [1.0, 9.0]) };
        let (device, why) = failed.choice(&|_| true);
        assert!(device == Device::Cpu && why.contains("openvino took too long"), "{why}");
        assert_eq!(speeds([1.0, f64::NAN], [1.0, 2.0]).choice(&|_| true).0, Device::Cpu);
    }
}
