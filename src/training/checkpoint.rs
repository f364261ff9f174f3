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
use crate::models::weights::{Dtype, SafetensorsFile, SafetensorsWriter, WeightsError};
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
    #[error("{}: damaged: its tensors do not have the checksum in {STATE}", path.display())]
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
    serde_json::from_value(value).map_err(json)
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
    files::write_json(&path, &Stored { state, crc32c: Some(Checksums { parameters, optimizer }) }).map_err(io(path))
}

/// Gives the checksum of what was written.
fn write_tensors<'a>(path: &Path, tensors: impl Iterator<Item = (String, &'a Slot, &'a [f32])>) -> Result<u32, CheckpointError> {
    let tensors: Vec<_> = tensors.collect();
    let list = tensors.iter().map(|(name, slot, _)| (name.as_str(), Dtype::F32, slot.shape.as_slice()));
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
    let Stored { state, crc32c: written } = read_state(&folder.join(STATE))?;
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
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(io(folder)(error)),
    };
    let mut found = vec![];
    for entry in entries {
        let path = entry.map_err(io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(step) = name.strip_prefix("step-").and_then(|number| number.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
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
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(io(folder))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".tmp-")) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(io(path))?;
        }
    }
    Ok(())
}

fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.into();
    move |source| CheckpointError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new([("a.weight".into(), vec![2, 3]), ("a.bias".into(), vec![3])])
    }

    fn filled(layout: &Layout, base: f32) -> Vec<f32> {
        let mut values = layout.buffer().to_vec();
        for slot in layout.slots() {
            values[slot.range()].iter_mut().enumerate().for_each(|(i, v)| *v = base + i as f32 / 7.0);
        }
        values
    }

    fn write_one(folder: &Path, layout: &Layout, base: f32, state: &RunState) -> Result<(), CheckpointError> {
        let [p, m, v] = [0.0, 10.0, 20.0].map(|more| filled(layout, base + more));
        write(folder, state, &Numbers { layout, parameters: &p, exp_avg: &m, exp_avg_sq: &v })
    }

    fn read_one(folder: &Path, layout: &Layout) -> Result<(RunState, [Vec<f32>; 3]), CheckpointError> {
        let [mut p, mut m, mut v] = [(); 3].map(|()| layout.buffer().to_vec());
        let state = read(folder, NumbersMut { layout, parameters: &mut p, exp_avg: &mut m, exp_avg_sq: &mut v })?;
        Ok((state, [p, m, v]))
    }

    #[test]
    fn what_is_written_comes_back_to_the_bit() {
        let root = tempfile::tempdir().unwrap();
        let layout = layout();
        let mut state = RunState::new(7, "abc".into());
        state.best_dev_loss = Some(0.1 + 0.2);
        state.step = 5;
        let folder = place(root.path(), 5);
        write_one(&folder, &layout, 1.0, &state).unwrap();
        // Written again over itself.
        write_one(&folder, &layout, 2.0, &state).unwrap();
        let (back, [p, m, v]) = read_one(&folder, &layout).unwrap();
        assert_eq!(back, state);
        assert_eq!((p, m, v), (filled(&layout, 2.0), filled(&layout, 12.0), filled(&layout, 22.0)));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        let names = SafetensorsFile::open(folder.join(OPTIMIZER)).unwrap();
        assert_eq!(names.tensors().len(), 4);
        assert!(names.get("a.bias.exp_avg_sq").is_ok());
    }

    #[test]
    fn best_losses_of_any_value_survive_their_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE);
        let mut bits = crate::training::random::Stream::new(3);
        for _ in 0..2000 {
            let loss = f32::from_bits(bits.next_u64() as u32);
            if loss.is_finite() {
                let state = RunState { best_dev_loss: Some(loss), ..RunState::new(0, String::new()) };
                fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
                assert_eq!(RunState::read(&path).unwrap().best_dev_loss.map(f32::to_bits), Some(loss.to_bits()));
            }
        }
    }

    #[test]
    fn damage_is_seen_and_checkpoints_without_checksums_are_read() {
        let root = tempfile::tempdir().unwrap();
        let (layout, folder) = (layout(), place(root.path(), 1));
        for name in [PARAMETERS, OPTIMIZER] {
            write_one(&folder, &layout, 1.0, &RunState::new(0, String::new())).unwrap();
            let mut bytes = fs::read(folder.join(name)).unwrap();
            let last = bytes.len() - 2;
            bytes[last] ^= 1;
            fs::write(folder.join(name), bytes).unwrap();
            let error = read_one(&folder, &layout).unwrap_err();
            assert!(matches!(&error, CheckpointError::Damaged { path } if path.ends_with(name)), "{error}");
        }
        let state = fs::read_to_string(folder.join(STATE)).unwrap();
        let mut state: serde_json::Value = serde_json::from_str(&state).unwrap();
        state.as_object_mut().unwrap().remove("crc32c").unwrap();
        fs::write(folder.join(STATE), state.to_string()).unwrap();
        read_one(&folder, &layout).unwrap();
    }

    #[test]
    fn the_last_ones_are_kept_and_leftovers_swept() {
        let root = tempfile::tempdir().unwrap();
        let layout = layout();
        for step in [2, 10, 9, 1] {
            write_one(&place(root.path(), step), &layout, 0.0, &RunState::new(0, String::new())).unwrap();
        }
        fs::create_dir(root.path().join("step-11.tmp-1-0")).unwrap();
        fs::create_dir(root.path().join("step-x")).unwrap();
        prune(root.path(), 2).unwrap();
        sweep(root.path()).unwrap();
        assert_eq!(list(root.path()).unwrap().iter().map(|(step, _)| *step).collect::<Vec<_>>(), [9, 10]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 3);
        prune(root.path(), 0).unwrap();
        assert_eq!(list(root.path()).unwrap().len(), 1);
        assert!(list(&root.path().join("nowhere")).unwrap().is_empty());
    }

    #[test]
    fn another_model_and_a_newer_format_are_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let folder = place(root.path(), 1);
        write_one(&folder, &layout(), 0.0, &RunState::new(0, String::new())).unwrap();
        let other = Layout::new([("a.weight".into(), vec![3, 2])]);
        let error = read_one(&folder, &other).unwrap_err().to_string();
        assert!(error.contains("a.weight") && error.contains("[2, 3]") && error.contains("[3, 2]"), "{error}");
        let missing = read_one(&folder, &Layout::new([("b".into(), vec![1])])).unwrap_err().to_string();
        assert!(missing.contains("parameters.safetensors") && missing.contains('b'), "{missing}");
        let newer = RunState { format: "checkpoint/2".into(), ..RunState::new(0, String::new()) };
        files::write_json(&folder.join(STATE), &newer).unwrap();
        assert!(matches!(read_one(&folder, &layout()), Err(CheckpointError::Version(_))));
    }

    #[test]
    fn a_failed_write_leaves_the_old_checkpoint() {
        let root = tempfile::tempdir().unwrap();
        let layout = layout();
        let folder = place(root.path(), 1);
        write_one(&folder, &layout, 1.0, &RunState::new(0, String::new())).unwrap();
        // A place that is a file cannot hold a checkpoint.
        let blocked = root.path().join("blocked");
        fs::write(&blocked, b"x").unwrap();
        assert!(write_one(&blocked.join("step-1"), &layout, 1.0, &RunState::new(0, String::new())).is_err());
        assert_eq!(read_one(&folder, &layout).unwrap().1[0], filled(&layout, 1.0));
    }
}
