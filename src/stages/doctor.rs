//! `clipcap doctor`: which runtime, which providers, and whether they compute the right thing.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::Outcome;
use crate::models::Bundle;
use crate::pipeline::Reporter;
use crate::runtime::{Device, Precision, Runtime, selftest};

pub struct DoctorSettings {
    pub device: Device,
    pub precision: Precision,
    pub threads: Option<usize>,
    pub model: Option<PathBuf>,
}

/// The findings as text and as JSON.
pub fn run(settings: &DoctorSettings, reporter: &dyn Reporter) -> anyhow::Result<(Outcome, String, Value)> {
    let runtime = Runtime::start(settings.device, settings.precision, settings.threads)?;
    let providers = runtime.providers();
    let test = selftest::run(&runtime)?;
    let verdict = if test.passed() { "passed" } else { "FAILED" };
    let mut text = format!(
        "clipcap       {}\nONNX Runtime  {}\nlibrary       {}\nproviders     {}\ndevice        {} (asked for: {}), {}, {} threads\nself-test     {verdict}: largest difference {:.1e}, {:.0e} allowed\n",
        env!("CARGO_PKG_VERSION"),
        runtime.version(),
        runtime.library().display(),
        providers.join(", "),
        runtime.device(),
        settings.device,
        runtime.precision(),
        runtime.threads(),
        test.difference,
        test.tolerance,
    );
    reporter.detail(runtime.build_info());
    runtime.take_placements().iter().for_each(|placement| reporter.detail(&placement.to_string()));
    let mut json = json!({
        "clipcap": env!("CARGO_PKG_VERSION"),
        "onnxruntime": {"version": runtime.version(), "library": runtime.library(), "build": runtime.build_info(), "providers": providers},
        "device": runtime.device().to_string(),
        "precision": runtime.precision().to_string(),
        "threads": runtime.threads(),
        "self_test": {"passed": test.passed(), "difference": test.difference, "tolerance": test.tolerance},
    });
    if let Some(path) = &settings.model {
        let bundle = Bundle::open(path)?;
        bundle.verify()?;
        text += &format!("model         {}: every weight matches its fingerprint\n", path.display());
        for (part, record) in &bundle.manifest().parts {
            text += &format!("  {part:<10}  {}\n", record.facts.fingerprint);
        }
        text += &format!("  whole       {}\n", bundle.fingerprint());
        json["model"] = json!({"verified": true, "fingerprint": bundle.fingerprint(), "parts": bundle.manifest().parts});
    }
    let outcome = if test.passed() { Outcome::Complete } else { Outcome::TooManyFailed };
    Ok((outcome, text, json))
}
