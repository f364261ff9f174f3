//! Flags of the original's predict.py that a bundle answers by itself.

use std::path::PathBuf;

use crate::cli::BadUsage;
use crate::cli::original::ModelFlags;
use crate::models::Bundle;
use crate::pipeline::Reporter;

#[derive(clap::Args)]
pub(super) struct OriginalArgs {
    #[command(flatten)]
    model: ModelFlags,
    #[arg(long = "gpt2_model_path", hide = true)]
    gpt2_model_path: Option<PathBuf>,
    #[arg(long = "bert_model_path", hide = true)]
    bert_model_path: Option<PathBuf>,
    #[arg(long = "clip_model_path", hide = true)]
    clip_model_path: Option<PathBuf>,
    #[arg(long = "finetune_gpt2", hide = true)]
    pub(super) finetune_gpt2: bool,
    #[arg(long = "normalize_prefix", hide = true)]
    pub(super) normalize_prefix: bool,
}

impl OriginalArgs {
    /// What was said of the model must be true of the bundle.
    ///
    /// # Errors
    /// A flag and the bundle say different things.
    pub(super) fn check(&self, bundle: &Bundle, reporter: &dyn Reporter) -> Result<(), BadUsage> {
        self.model.check(bundle)?;
        if self.normalize_prefix && !bundle.normalized() {
            return Err(BadUsage("--normalize_prefix: this bundle's mapper was trained on embeddings as CLIP makes them".into()));
        }
        let idle = [
            ("gpt2_model_path", self.gpt2_model_path.is_some()),
            ("bert_model_path", self.bert_model_path.is_some()),
            ("clip_model_path", self.clip_model_path.is_some()),
            ("finetune_gpt2", self.finetune_gpt2),
            ("only_prefix", self.model.only_prefix),
            ("is_rn", self.model.is_rn),
        ];
        for (name, _) in idle.iter().filter(|(_, given)| *given) {
            reporter.note(&format!("--{name} is not needed: the bundle holds the whole model"));
        }
        Ok(())
    }
}
