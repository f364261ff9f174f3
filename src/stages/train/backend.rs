//! What computes a run, and the artifacts it leaves.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::folder::{ARTIFACTS_CHECKPOINT, RunFolder};
use super::settings::Recipe;
use crate::models::Bundle;
use crate::onnx::DType;
use crate::pipeline::Reporter;
use crate::runtime::{Device, Precision, Runtime};
use crate::training::artifacts::{self, Network};
use crate::training::checkpoint::{self, Numbers, NumbersMut, RunState};
use crate::training::host::{self, HostBackend, Options};
use crate::training::objective::Objective;
use crate::training::optimizer_graph::OptimizerOptions;
use crate::training::parameters::Layout;
use crate::training::resident::ResidentBackend;
use crate::training::trainer::Backend;

/// The network of a bundle.
pub fn network(bundle: &Bundle) -> Network<'_> {
    Network {
        folder: bundle.path(),
        clip: bundle.clip_config(),
        mapper: bundle.mapper_config(),
        decoder: bundle.decoder_config(),
        scope: bundle.decoder_scope(),
    }
}

/// Readies the device a run computes on.
pub fn make(bundle: &Bundle, recipe: &Recipe, runtime: &Runtime) -> Result<Box<dyn Backend>> {
    let options = Options { trained: recipe.trained(), batch_size: recipe.batch_size, seed: recipe.seed };
    let network = network(bundle);
    match (runtime.device(), runtime.precision()) {
        (Device::OpenVino, _) if recipe.objective == Objective::Contrastive => {
            bail!("the contrastive objective is not supported on openvino; use --device cpu or cuda")
        }
        (Device::Cpu | Device::Auto, Precision::Fp32) | (Device::OpenVino, Precision::Fp32 | Precision::Bf16) => {
            Ok(Box::new(HostBackend::new(runtime, &network, options)?))
        }
        (Device::Cuda(_), Precision::Fp32) => Ok(Box::new(ResidentBackend::new(runtime, &network, &options, DType::F32)?)),
        (Device::Cuda(_), Precision::Bf16) => Ok(Box::new(ResidentBackend::new(runtime, &network, &options, DType::BF16)?)),
        (device, precision) => {
            bail!("{precision} training is not supported on {device}; use --precision fp32 (or bf16 on openvino and cuda)")
        }
    }
}

/// Goes back to the newest checkpoint that can be read; what came after it is computed again, to the same numbers.
pub fn restore<'c>(
    backend: &mut dyn Backend,
    state: &mut RunState,
    checkpoints: &'c [PathBuf],
    reporter: &dyn Reporter,
) -> Result<Option<&'c PathBuf>> {
    let layout = backend.layout().clone();
    for (at, path) in checkpoints.iter().enumerate() {
        let restored = backend.restore(&mut |[parameters, exp_avg, exp_avg_sq]| {
            *state = checkpoint::read(path, NumbersMut { layout: &layout, parameters, exp_avg, exp_avg_sq })?;
            Ok(())
        });
        match restored {
            Ok(()) => return Ok(Some(path)),
            Err(error) if at + 1 < checkpoints.len() => {
                reporter.warn(&format!("{error}; going on from the checkpoint before it"));
            }
            Err(error) => {
                let folder = path.parent().unwrap_or(path).display();
                return Err(error).with_context(|| format!("no checkpoint can be resumed; remove {folder} to start over"));
            }
        }
    }
    Ok(None)
}

/// Writes `artifacts/`: the graphs, frozen weights and the initial checkpoint.
pub fn write_artifacts(folder: &RunFolder, bundle: &Bundle, recipe: &Recipe, fingerprint: &str) -> Result<Layout> {
    let artifacts = folder.artifacts();
    if artifacts.exists() {
        // Others' would stay in part: weights that nothing names.
        std::fs::remove_dir_all(&artifacts).with_context(|| format!("cannot remove {}", artifacts.display()))?;
    }
    let network = network(bundle);
    let optimizer = OptimizerOptions {
        adamw: recipe.adamw(),
        no_decay_norm_bias: recipe.no_decay_norm_bias,
        max_grad_norm: recipe.max_grad_norm,
    };
    let graph = artifacts::write(&artifacts, &network, recipe.trained(), &optimizer)?;
    let layout = host::layout_of(&graph.parameters);
    let (mut parameters, moments) = (layout.buffer(), layout.buffer());
    host::load_parameters(&network, &layout, recipe.seed, &mut parameters)?;
    let numbers = Numbers { layout: &layout, parameters: &parameters, exp_avg: &moments, exp_avg_sq: &moments };
    checkpoint::write(&artifacts.join(ARTIFACTS_CHECKPOINT), &RunState::new(recipe.seed, fingerprint.into()), &numbers)
        .with_context(|| format!("cannot write into {}", artifacts.display()))?;
    Ok(layout)
}
