//! Checkpoints: everything a run needs to go on as if it had never stopped.
//!
//! `step-N/` holds `parameters.safetensors`, `optimizer.safetensors` (`NAME.exp_avg`, `NAME.exp_avg_sq`) and `state.json`. It is written
//! under another name and renamed, so a folder called `step-N` is complete. `state.json` holds the checksums of the others' tensors: what a
//! power cut or a bad disk made of them is seen before a run goes on from it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::parameters::{Layout, Slot};
use crate::files;
use crate::models::weights::{DType, SafetensorsFile, SafetensorsWriter, WeightsError};
use crate::table::{self, TableError};

pub const FORMAT: &str = "checkpoint/1";
pub const PARAMETERS: &str = "parameters.safetensors";
pub const OPTIMIZER: &str = "optimizer.safetensors";
pub const STATE: &str = "state.json";

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: not the state of a training run ({source})", path.display())]
    State { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Version(#[from] TableError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("{}: damaged: its content does not have the checksum in {STATE}", path.display())]
    Damaged { path: PathBuf },
    #[error("{}: {name} is {found:?} there and {wanted:?} in this model", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<usize>, wanted: Vec<usize> },
}

/// `state.json`: where a run is. It holds no time and no path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    #[serde(rename = "clipcap.format")]
    pub format: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Passes over the training captions that are complete.
    pub epoch: u64,
    /// Batches of the pass in hand that are done; the order of a pass follows from (seed, epoch).
    pub batch: u64,
    /// Shuffling and dropout are pure functions of the seed and of where the run is, so this is the whole random state.
    pub seed: u64,
    /// Dev loss of the best evaluation so far, and its step.
    pub best_dev_loss: Option<f32>,
    /// CIDEr of the best evaluation so far, where that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_dev_cider: Option<f32>,
    pub best_step: Option<u64>,
    /// Evaluations since the best one.
    pub evaluations_since_best: u32,
    /// True once the run has done all it was asked to.
    pub finished: bool,
    /// A hash of the settings, the data and the model the run started with.
    pub fingerprint: String,
}

impl RunState {
    pub fn new(seed: u64, fingerprint: String) -> Self {
        Self {
            format: FORMAT.into(),
            step: 0,
            epoch: 0,
            batch: 0,
            seed,
            best_dev_loss: None,
            best_dev_cider: None,
            best_step: None,
            evaluations_since_best: 0,
            finished: false,
            fingerprint,
        }
    }

    /// Reads a `state.json`; a newer format is refused.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        Ok(read_state(path)?.state)
    }
}

fn read_state(path: &Path) -> Result<Stored<RunState>, CheckpointError> {
    let text = fs::read(path).map_err(io(path))?;
    let json = |source| CheckpointError::State { path: path.into(), source };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(json)?;
    let format = value.get(table::FORMAT_KEY).and_then(|format| format.as_str()).unwrap_or("(nothing)");
    table::check_format(path, format, FORMAT)?;
    let stored: Stored<RunState> = serde_json::from_value(value).map_err(json)?;
    match stored.state_crc32c {
        Some(written) if checksum_of(&stored.state).map_err(json)? != written => {
            Err(CheckpointError::Damaged { path: path.into() })
        }
        _ => Ok(stored),
    }
}

/// CRC-32C of the tensors of each file, in the layout's order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Checksums {
    parameters: u32,
    optimizer: u32,
}

impl Checksums {
    fn add(sum: &mut u32, values: &[f32]) {
        *sum = crc32c::crc32c_append(*sum, bytemuck::cast_slice(values));
    }
}

/// What `state.json` holds; of checkpoints made before there were checksums, none.
#[derive(Serialize, Deserialize)]
struct Stored<S> {
    #[serde(flatten)]
    state: S,
    crc32c: Option<Checksums>,
    /// CRC-32C of `state`, as JSON without spaces.
    #[serde(default)]
    state_crc32c: Option<u32>,
}

fn checksum_of(state: &RunState) -> Result<u32, serde_json::Error> {
    Ok(crc32c::crc32c(&serde_json::to_vec(state)?))
}

/// The numbers of a run, in one layout.
pub struct Numbers<'a> {
    pub layout: &'a Layout,
    pub parameters: &'a [f32],
    pub exp_avg: &'a [f32],
    pub exp_avg_sq: &'a [f32],
}

/// As [`Numbers`], to be read into.
pub struct NumbersMut<'a> {
    pub layout: &'a Layout,
    pub parameters: &'a mut [f32],
    pub exp_avg: &'a mut [f32],
    pub exp_avg_sq: &'a mut [f32],
}

/// Writes a checkpoint at `folder`, replacing one that is there. A failure leaves what was there as it was.
pub fn write(folder: &Path, state: &RunState, numbers: &Numbers<'_>) -> Result<(), CheckpointError> {
    let staging = files::temporary_beside(folder);
    let written = write_into(&staging, state, numbers).and_then(|()| publish(&staging, folder));
    if written.is_err() {
        let _ = fs::remove_dir_all(&staging);
    }
    written
}

fn write_into(folder: &Path, state: &RunState, numbers: &Numbers<'_>) -> Result<(), CheckpointError> {
    fs::create_dir_all(folder).map_err(io(folder))?;
    let slots = numbers.layout.slots();
    let parameters = write_tensors(
        &folder.join(PARAMETERS),
        slots.iter().map(|slot| (slot.name.clone(), slot, &numbers.parameters[slot.range()])),
    )?;
    let moments = slots.iter().flat_map(|slot| {
        [("exp_avg", numbers.exp_avg), ("exp_avg_sq", numbers.exp_avg_sq)]
            .map(|(moment, values)| (format!("{}.{moment}", slot.name), slot, &values[slot.range()]))
    });
    let optimizer = write_tensors(&folder.join(OPTIMIZER), moments)?;
    let path = folder.join(STATE);
    let state_crc32c = Some(checksum_of(state).map_err(|source| CheckpointError::State { path: path.clone(), source })?);
    files::write_json(&path, &Stored { state, crc32c: Some(Checksums { parameters, optimizer }), state_crc32c }).map_err(io(path))
}

/// Gives the checksum of what was written.
fn write_tensors<'a>(path: &Path, tensors: impl Iterator<Item = (String, &'a Slot, &'a [f32])>) -> Result<u32, CheckpointError> {
    let tensors: Vec<_> = tensors.collect();
    let list = tensors.iter().map(|(name, slot, _)| (name.as_str(), DType::F32, slot.shape.as_slice()));
    let mut writer = SafetensorsWriter::create(path, list)?;
    let mut sum = 0;
    for (name, _, values) in &tensors {
        writer.write_f32(name, values)?;
        Checksums::add(&mut sum, values);
    }
    writer.finish()?;
    Ok(sum)
}

/// Gives a finished folder its name. The folder that had it steps aside under a temporary name and is removed.
pub fn publish(staging: &Path, folder: &Path) -> Result<(), CheckpointError> {
    let old = folder.exists().then(|| files::temporary_beside(folder));
    if let Some(old) = &old {
        fs::rename(folder, old).map_err(io(folder))?;
    }
    if let Err(error) = fs::rename(staging, folder) {
        if let Some(old) = &old {
            fs::rename(old, folder).map_err(io(old))?;
        }
        return Err(io(folder)(error));
    }
    if let Some(parent) = folder.parent().and_then(|parent| fs::File::open(parent).ok()) {
        // Makes the rename durable; a file system that cannot sync a folder loses nothing else.
        let _ = parent.sync_all();
    }
    old.map_or(Ok(()), |old| fs::remove_dir_all(&old).map_err(io(old)))
}

/// Reads a checkpoint's numbers into buffers of the same layout. Every tensor of the layout must be there in its shape, as it was written.
pub fn read(folder: &Path, numbers: NumbersMut<'_>) -> Result<RunState, CheckpointError> {
    let Stored { state, crc32c: written, .. } = read_state(&folder.join(STATE))?;
    let parameters = SafetensorsFile::open(folder.join(PARAMETERS))?;
    let optimizer = SafetensorsFile::open(folder.join(OPTIMIZER))?;
    let mut found = Checksums::default();
    for slot in numbers.layout.slots() {
        read_slot(&parameters, &slot.name, slot, numbers.parameters)?;
        read_slot(&optimizer, &format!("{}.exp_avg", slot.name), slot, numbers.exp_avg)?;
        read_slot(&optimizer, &format!("{}.exp_avg_sq", slot.name), slot, numbers.exp_avg_sq)?;
        Checksums::add(&mut found.parameters, &numbers.parameters[slot.range()]);
        Checksums::add(&mut found.optimizer, &numbers.exp_avg[slot.range()]);
        Checksums::add(&mut found.optimizer, &numbers.exp_avg_sq[slot.range()]);
    }
    let written = written.unwrap_or(found);
    for (name, is_same) in
        [(PARAMETERS, written.parameters == found.parameters), (OPTIMIZER, written.optimizer == found.optimizer)]
    {
        if !is_same {
            return Err(CheckpointError::Damaged { path: folder.join(name) });
        }
    }
    Ok(state)
}

/// Reads one tensor, as float32, into its place.
pub fn read_slot(file: &SafetensorsFile, name: &str, slot: &Slot, into: &mut [f32]) -> Result<(), CheckpointError> {
    let entry = file.get(name)?;
    if entry.shape != slot.shape {
        return Err(CheckpointError::Shape {
            path: file.path().into(),
            name: name.into(),
            found: entry.shape.clone(),
            wanted: slot.shape.clone(),
        });
    }
    into[slot.range()].copy_from_slice(&file.read_f32(name)?);
    Ok(())
}

/// The checkpoints in a folder by their step, the oldest first; folders of other names are not checkpoints.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    files::if_there(files::numbered_in(folder, "step-", "")).map(Option::unwrap_or_default).map_err(io(folder))
}

/// Where the checkpoint after `step` steps lies.
pub fn place(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step}"))
}

/// Removes all checkpoints but the last `keep` (at least one).
pub fn prune(folder: &Path, keep: usize) -> Result<(), CheckpointError> {
    let mut found = list(folder)?;
    found.truncate(found.len().saturating_sub(keep.max(1)));
    for (_, path) in found {
        // Renamed first: a folder that is half removed must not be taken for a checkpoint.
        let aside = files::temporary_beside(&path);
        fs::rename(&path, &aside).map_err(io(&path))?;
        fs::remove_dir_all(&aside).map_err(io(aside))?;
    }
    Ok(())
}

/// Removes what a killed run left half written or half removed in a folder of checkpoints.
pub fn sweep(folder: &Path) -> Result<(), CheckpointError> {
    for path in files::paths_in(folder).unwrap_or_default() {
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".tmp-")) {
            files::remove_if_there(&path).map_err(io(path))?;
        }
    }
    Ok(())
}

fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.into();
    move |source| CheckpointError::Io { path, source }
}

#[cfg(test)]
mod tests;
