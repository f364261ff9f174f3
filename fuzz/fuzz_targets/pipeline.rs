//! Pipelines as TOML.
#![no_main]

use clipcap::pipeline::Spec;
use clipcap_fuzz::on_disk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| on_disk("pipeline.toml", bytes, |path| {
    if let Ok(spec) = Spec::read(path, &[]) {
        spec.stages.iter().for_each(|stage| drop(stage.words()));
    }
}));
