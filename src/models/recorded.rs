//! A step of decoding as a card runs it best: the same shapes and tensors every time, recorded once and played back.

use std::path::{Path, PathBuf};

use crate::onnx::Model;
use crate::runtime::{InPlace, Runtime, RuntimeError, Session};

const NAME: &str = "decoder_step";

/// So that a recording that is suspected can be done without.
const NOT_RECORDED: &str = "CLIPCAP_NO_CUDA_GRAPH";

/// Runs before the one that is recorded. Nothing may be allocated while it is, so others come first, which leave ONNX Runtime the memory that it
/// needs.
const RUNS_BEFORE: u64 = 2;

/// A session with the tensors of all its runs, each of which may be repeated.
pub(super) struct RecordedStep {
    session: Session,
    inputs: Vec<InPlace<'static>>,
    outputs: Vec<InPlace<'static>>,
    model: Model,
    folder: PathBuf,
    runs: u64,
    is_recorded: bool,
}

impl RecordedStep {
    /// Not recorded where the provider does not take such a graph for recording.
    pub fn load(
        runtime: &Runtime,
        folder: &Path,
        model: Model,
        inputs: Vec<InPlace<'static>>,
        outputs: Vec<InPlace<'static>>,
    ) -> Result<Self, RuntimeError> {
        let may_record = std::env::var_os(NOT_RECORDED).is_none_or(|value| value.is_empty());
        let recorded = may_record.then(|| Session::recorded(runtime, NAME, &model.to_bytes(), folder));
        let (session, is_recorded) = match recorded {
            Some(Ok(session)) => (session, true),
            Some(Err(_)) | None => (Session::new(runtime, NAME, &model.to_bytes(), folder, &[])?, false),
        };
        Ok(Self { session, inputs, outputs, model, folder: folder.into(), runs: 0, is_recorded })
    }

    /// A card that fails to record it runs it as it is; what has been written by then is written again.
    pub fn run(&mut self, runtime: &Runtime) -> Result<(), RuntimeError> {
        let mut done = match self.is_recorded && self.runs < RUNS_BEFORE {
            true => self.session.run_unrecorded(&self.inputs, &mut self.outputs),
            false => self.session.run_in_place(&self.inputs, &mut self.outputs),
        };
        if done.is_err() && self.is_recorded && self.runs <= RUNS_BEFORE {
            self.session = Session::new(runtime, NAME, &self.model.to_bytes(), &self.folder, &[])?;
            self.is_recorded = false;
            done = self.session.run_in_place(&self.inputs, &mut self.outputs);
        }
        self.runs += 1;
        done
    }
}
