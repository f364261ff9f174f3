//! `clipcap doctor`: which runtime, which providers, and whether they compute the right thing.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Outcome, choice};
use crate::models::Bundle;
use crate::pipeline::Reporter;
use crate::runtime::selftest::{self, SelfTest};
use crate::runtime::{self, Device, Precision, Runtime, RuntimeError};

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
    let mut text = format!(
        "clipcap       {}\nONNX Runtime  {}\nlibrary       {}\nproviders     {}\ndevice        {} (asked for: {}), {}, {} threads\n",
        env!("CARGO_PKG_VERSION"),
        runtime.version(),
        runtime.library().display(),
        providers.join(", "),
        runtime.device(),
        settings.device,
        runtime.precision(),
        runtime.threads(),
    );
    let mut json = json!({
        "clipcap": env!("CARGO_PKG_VERSION"),
        "onnxruntime": {"version": runtime.version(), "library": runtime.library(), "build": runtime.build_info(), "providers": providers},
        "device": runtime.device().to_string(),
        "precision": runtime.precision().to_string(),
        "threads": runtime.threads(),
    });
    if let Some((library, version)) = runtime.openvino() {
        let _ = writeln!(text, "OpenVINO      {version}\nlibrary       {}", library.display());
        json["openvino"] = json!({"version": version, "library": library});
    }
    tell_cuda(&runtime, &mut text, &mut json);
    let is_sound = test_precisions(&runtime, &mut text, &mut json);
    reporter.detail(runtime.build_info());
    runtime.take_placements().iter().for_each(|placement| reporter.detail(&placement.to_string()));
    if let Some(path) = &settings.model {
        let bundle = Bundle::open(path)?;
        if settings.device == Device::Auto
            && let Some((line, found)) = choice::measured_anew(&bundle, settings.precision, settings.threads, reporter)
        {
            text += &format!("auto          caption and embed: {line}\n");
            json["auto"] = found;
        }
        bundle.verify()?;
        text += &format!("model         {}: every weight matches its fingerprint\n", path.display());
        for (part, record) in &bundle.manifest().parts {
            text += &format!("  {part:<10}  {}\n", record.facts.fingerprint);
        }
        text += &format!("  whole       {}\n", bundle.fingerprint());
        json["model"] = json!({"verified": true, "fingerprint": bundle.fingerprint(), "parts": bundle.manifest().parts});
    }
    let outcome = if is_sound { Outcome::Complete } else { Outcome::TooManyFailed };
    Ok((outcome, text, json))
}

/// The cards, the libraries and where each was found; or why no card is used.
fn tell_cuda(runtime: &Runtime, text: &mut String, json: &mut Value) {
    if let Some(why) = runtime.why_not_cuda() {
        let _ = writeln!(text, "CUDA          not used: {why}");
        json["cuda"] = json!({"used": false, "why_not": why});
    } else if !runtime.cards().is_empty() {
        let mut libraries = serde_json::Map::new();
        for card in runtime.cards() {
            let _ = writeln!(text, "card          {card}, driver for CUDA {}.{}", card.driver.0, card.driver.1);
        }
        for library in runtime.nvidia_libraries() {
            let place = match &library.path {
                Some(path) => path.display().to_string(),
                None => format!("not found: ResNet image encoders need it (pip install {}), nothing else does", library.package),
            };
            let _ = writeln!(text, "  {:<18} {place}", library.file);
            libraries.insert(library.file.into(), json!(library.path));
        }
        let others = runtime::cards().unwrap_or_default();
        let cards: Vec<String> = runtime.cards().iter().map(ToString::to_string).collect();
        json["cuda"] = json!({"used": true, "cards": cards, "cards_there": others.len(), "libraries": libraries});
    }
}

/// The worst of all cards' tests.
fn test_each(runtime: &Runtime) -> Result<SelfTest, RuntimeError> {
    let cards = runtime.on_each_card();
    let mut worst = selftest::run(&cards[0])?;
    for card in &cards[1..] {
        let test = selftest::run(card)?;
        // NaN is worse than any number.
        if test.difference.is_nan() || test.difference > worst.difference {
            worst = test;
        }
    }
    Ok(worst)
}

/// Tests every precision that the device has and needs no other weights; false where the one that was asked for is not sound.
fn test_precisions(runtime: &Runtime, text: &mut String, json: &mut Value) -> bool {
    let mut is_sound = true;
    let mut tests = serde_json::Map::new();
    for &precision in runtime.precisions() {
        let is_asked_for = precision == runtime.precision();
        if precision == Precision::Int8 && !is_asked_for {
            continue;
        }
        let test = runtime.in_precision(precision).and_then(|runtime| test_each(&runtime));
        let (verdict, found) = match &test {
            Ok(test) => {
                let verdict = if test.passed() { "passed" } else { "FAILED" };
                let verdict = format!("{verdict}: largest difference {:.1e}, {:.0e} allowed", test.difference, test.tolerance);
                (verdict, json!({"passed": test.passed(), "difference": test.difference, "tolerance": test.tolerance}))
            }
            Err(error) => (format!("not usable: {error}"), json!({"passed": false, "error": error.to_string()})),
        };
        let _ = writeln!(text, "self-test     {precision} {verdict}");
        if is_asked_for {
            is_sound = test.is_ok_and(|test| test.passed());
            json["self_test"] = found.clone();
        }
        tests.insert(precision.to_string(), found);
    }
    json["self_tests"] = tests.into();
    is_sound
}
