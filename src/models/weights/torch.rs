//! PyTorch's own files: what `torch.save` writes (a zip file since 1.6, a row of pickles before) and TorchScript archives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::pickle::{self, Arena, Id, Object, PickleReader, Tensor};
use super::place::{self, Region, StorageRegion, View};
use super::{DType, WeightsError};

/// A tensor of a PyTorch file.
pub(super) struct TorchTensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub view: View,
}

pub(super) type TorchTensors = BTreeMap<String, TorchTensor>;

/// The pickle of a large model is 1 MB.
const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// The magic number a legacy file starts with, pickled.
pub(super) const LEGACY_MAGIC: [u8; 14] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const LEGACY_PROTOCOL: i64 = 1001;

/// Reads the description of a zip file's tensors. True beside them where it is a TorchScript archive.
pub(super) fn open_zip(path: &Path, file: &mut File) -> Result<(TorchTensors, bool), WeightsError> {
    let invalid = |problem: String| WeightsError::invalid(path, problem);
    let zip_error = |error: zip::result::ZipError| invalid(format!("not a readable zip file: {error}"));
    let file_bytes = file.metadata().map_err(WeightsError::io(path))?.len();
    let handle = file.try_clone().map_err(WeightsError::io(path))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(zip_error)?;
    let names: Vec<String> = archive.file_names().map(str::to_owned).collect();
    if names.len() > MAX_ZIP_ENTRIES {
        return Err(invalid(format!("{} entries are more than any model has", names.len())));
    }
    if archive.offset() != 0 {
        return Err(invalid("something stands before the zip archive in this file: is it two files in one?".into()));
    }
    check_single(&handle, path, archive.len(), archive.central_directory_start(), archive.comment().len())?;
    let pickles = names.iter().filter_map(|name| name.strip_suffix("data.pkl"));
    let roots: Vec<&str> = pickles.filter(|root| root.is_empty() || root.find('/') == Some(root.len() - 1)).collect();
    let root = match roots[..] {
        [root] => root,
        [] => return Err(invalid("a zip file without data.pkl: not one of PyTorch's".into())),
        [first, second, ..] => {
            return Err(invalid(format!("holds several models ({first}data.pkl, {second}data.pkl): keep one of them in a file")));
        }
    };
    let script =
        names.iter().any(|name| name.strip_prefix(root).is_some_and(|name| name == "constants.pkl" || name.starts_with("code/")));
    let mut read_entry = |name: &str, limit: u64| -> Result<Option<Vec<u8>>, WeightsError> {
        let Some(index) = archive.index_for_name(&format!("{root}{name}")) else { return Ok(None) };
        let mut bytes = Vec::new();
        let entry = archive.by_index(index).map_err(zip_error)?;
        entry.take(limit + 1).read_to_end(&mut bytes).map_err(WeightsError::io(path))?;
        if bytes.len() as u64 > limit {
            return Err(invalid(format!("{name} inside is longer than {limit} bytes")));
        }
        Ok(Some(bytes))
    };
    if let Some(order) = read_entry("byteorder", 64)?
        && order != b"little"
    {
        return Err(invalid("its numbers are big-endian, which is not supported".into()));
    }
    let program = read_entry("data.pkl", MAX_PICKLE_BYTES)?.unwrap_or_default();
    let (arena, top) = pickle::load(&mut PickleReader::new(&program[..], MAX_PICKLE_BYTES), script)
        .map_err(|error| invalid(format!("data.pkl: {error}")))?;
    let mut storages = BTreeMap::new();
    for (index, name) in names.iter().enumerate() {
        let Some(key) = name.strip_prefix(root).and_then(|name| name.strip_prefix("data/")) else { continue };
        let entry = archive.by_index_raw(index).map_err(zip_error)?;
        let start = entry.data_start().filter(|_| !entry.encrypted());
        let region = match (entry.compression(), start) {
            (zip::CompressionMethod::Stored, Some(start)) => {
                let bytes = entry.compressed_size();
                if start.checked_add(bytes).is_none_or(|end| end > file_bytes) {
                    return Err(invalid(format!("{name} inside leaves the file: it is cut short or damaged")));
                }
                StorageRegion { region: Region::At(start), bytes }
            }
            (zip::CompressionMethod::Deflated, Some(_)) => {
                // Deflate cannot shrink data by more than 1032 to 1.
                let possible = entry.compressed_size().saturating_mul(1032).min(MAX_DEFLATED_BYTES);
                if entry.size() > possible {
                    return Err(invalid(format!("{name} inside claims to inflate to {} bytes", entry.size())));
                }
                StorageRegion { region: Region::Deflated(index), bytes: entry.size() }
            }
            _ => return Err(invalid(format!("{name} inside is encrypted or packed in a way that is not supported"))),
        };
        storages.insert(key.to_owned(), region);
    }
    let tensors = locate_all(path, &arena, top, &storages)?;
    for (index, name) in names.iter().enumerate() {
        let is_storage = name.strip_prefix(root).and_then(|name| name.strip_prefix("data/")).is_some();
        if is_storage {
            check_stored(&mut archive, index, path, name)?;
        }
    }
    Ok((tensors, script))
}

/// Refuses a file in which a second archive, or a second entry of one name, could be meant: readers differ in which they take.
fn check_single(file: &File, path: &Path, entries: usize, start: u64, comment_bytes: usize) -> Result<(), WeightsError> {
    let invalid = |problem: &str| WeightsError::invalid(path, problem);
    let cut = WeightsError::io(path);
    let read = |position: u64, bytes: &mut [u8]| file.read_exact_at(bytes, position);
    let scan = || -> std::io::Result<(usize, bool)> {
        // The directory, from its start: every entry has a record there, those whose name comes again too.
        let (mut counted, mut position, mut record) = (0, start, [0; 46]);
        loop {
            read(position, &mut record[..4])?;
            if record[..4] != *b"PK\x01\x02" {
                break;
            }
            read(position, &mut record)?;
            let field = |at: usize| u64::from(u16::from_le_bytes([record[at], record[at + 1]]));
            position += record.len() as u64 + field(28) + field(30) + field(32);
            counted += 1;
        }
        // Behind it perhaps ZIP64's two records, then the end record with its comment, which end the file.
        let left = file.metadata()?.len().saturating_sub(position);
        let end = position + left.saturating_sub(22 + comment_bytes as u64);
        read(end, &mut record[..4])?;
        Ok((counted, record[..4] == *b"PK\x05\x06" && left <= 76 + 22 + comment_bytes as u64))
    };
    let (counted, ends) = scan().map_err(cut)?;
    if counted != entries {
        return Err(invalid("two entries of the zip archive have the same name: it is not one of PyTorch's"));
    }
    if !ends {
        return Err(invalid("something follows the zip archive in this file: is it two files in one, or damaged?"));
    }
    Ok(())
}

/// Reads a stored entry once and compares its CRC-32, unless the file was written without one (PyTorch can leave it out).
fn check_stored<R: Read + Seek>(
    archive: &mut zip::ZipArchive<R>,
    index: usize,
    path: &Path,
    name: &str,
) -> Result<(), WeightsError> {
    let invalid = |problem: String| WeightsError::invalid(path, problem);
    let mut entry = archive.by_index(index).map_err(|error| invalid(format!("{name} inside cannot be read: {error}")))?;
    if entry.compression() != zip::CompressionMethod::Stored || entry.crc32() == 0 {
        return Ok(());
    }
    std::io::copy(&mut entry, &mut std::io::sink())
        .map_err(|error| invalid(format!("{name} inside is damaged ({error}): fetch the file again")))?;
    Ok(())
}

/// A model has hundreds.
const MAX_ZIP_ENTRIES: usize = 100_000;

/// PyTorch never deflates weights; whoever did, did not do it to more than this in one tensor.
const MAX_DEFLATED_BYTES: u64 = 2 << 30;

/// A deflated entry, whole. Its size was checked when the file was opened.
pub(super) fn inflate(path: &Path, file: &mut File, index: usize, bytes: usize) -> Result<Vec<u8>, WeightsError> {
    let zip_error = |error: zip::result::ZipError| WeightsError::invalid(path, format!("not a readable zip file: {error}"));
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(zip_error)?;
    let mut inflated = Vec::new();
    let entry = archive.by_index(index).map_err(zip_error)?;
    // To its end, where its CRC-32 is compared; its size was checked when the file was opened.
    let whole = entry.size();
    entry.take(whole.saturating_add(1)).read_to_end(&mut inflated).map_err(WeightsError::io(path))?;
    if inflated.len() < bytes {
        return Err(WeightsError::invalid(path, "a deflated entry is shorter than it claims"));
    }
    inflated.truncate(bytes);
    Ok(inflated)
}

/// Reads the description of a legacy file's tensors: five pickles, then each storage behind its length.
pub(super) fn open_legacy(path: &Path, file: &mut File) -> Result<TorchTensors, WeightsError> {
    let invalid = |problem: String| WeightsError::invalid(path, problem);
    let file_bytes = file.metadata().map_err(WeightsError::io(path))?.len();
    file.seek(SeekFrom::Start(0)).map_err(WeightsError::io(path))?;
    let mut reader = PickleReader::new(BufReader::new(file), MAX_PICKLE_BYTES);
    let mut next = || pickle::load(&mut reader, false).map_err(|error| invalid(error.to_string()));
    let (_magic, (protocol, version), (system, facts), (arena, top), (key_list, keys)) =
        (next()?, next()?, next()?, next()?, next()?);
    if *protocol.get(version) != Object::Int(LEGACY_PROTOCOL) {
        return Err(invalid("a legacy PyTorch file of an unknown protocol".into()));
    }
    let little = system.items(facts).and_then(|facts| facts.iter().find(|(key, _)| system.text(*key) == Some("little_endian")));
    if little.is_some_and(|(_, value)| *system.get(*value) == Object::Bool(false)) {
        return Err(invalid("its numbers are big-endian, which is not supported".into()));
    }
    let types: BTreeMap<&str, DType> = arena
        .objects()
        .filter_map(|object| match object {
            Object::Storage(storage) => Some((storage.key.as_str(), storage.dtype?)),
            _ => None,
        })
        .collect();
    let Object::List(keys) = key_list.get(keys) else { return Err(invalid("a legacy file without a list of storages".into())) };
    let mut position = reader.position();
    let file = reader.into_inner().into_inner();
    let mut storages = BTreeMap::new();
    for &key in keys {
        let key = key_list.text(key).unwrap_or_default();
        let Some(dtype) = types.get(key) else { return Err(invalid(format!("storage {key:?} belongs to no tensor"))) };
        let mut numel = [0; 8];
        file.seek(SeekFrom::Start(position)).map_err(WeightsError::io(path))?;
        file.read_exact(&mut numel).map_err(|_| invalid(format!("cut short before storage {key}")))?;
        let start = position + 8;
        let bytes = u64::from_le_bytes(numel).checked_mul(dtype.size() as u64);
        let end = bytes.and_then(|bytes| start.checked_add(bytes)).filter(|&end| end <= file_bytes);
        let Some(end) = end else { return Err(invalid(format!("cut short inside storage {key}"))) };
        if storages.insert(key.to_owned(), StorageRegion { region: Region::At(start), bytes: end - start }).is_some() {
            return Err(invalid(format!("storage {key} is listed twice")));
        }
        position = end;
    }
    if position != file_bytes {
        let more = file_bytes - position;
        return Err(invalid(format!("{more} bytes stand behind the last storage: is it two files in one?")));
    }
    locate_all(path, &arena, top, &storages)
}

fn locate_all(
    path: &Path,
    arena: &Arena,
    top: Id,
    storages: &BTreeMap<String, StorageRegion>,
) -> Result<TorchTensors, WeightsError> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in named_tensors(arena, top).map_err(|problem| WeightsError::invalid(path, problem))? {
        let storage = storages.get(&tensor.storage.key);
        let storage = storage.ok_or_else(|| {
            WeightsError::invalid(path, format!("{name}: its storage {} is not in the file", tensor.storage.key))
        })?;
        let (shape, view) =
            place::locate(tensor, storage).map_err(|problem| WeightsError::invalid(path, format!("{name}: {problem}")))?;
        if tensors.insert(name.clone(), TorchTensor { dtype: tensor.dtype, shape, view }).is_some() {
            return Err(WeightsError::invalid(path, format!("{name} is there twice: save one of them")));
        }
    }
    Ok(tensors)
}

/// Modules nest four or five deep.
const MAX_DEPTH: usize = 32;
const MAX_NAME_BYTES: usize = 512;
/// Shared parts are named once for each path to them, and a few of them nested can make any number of paths.
const MAX_VISITS: usize = 1 << 20;
const MAX_TENSORS: usize = 1 << 16;

/// Every tensor under `top` with its path of attribute names, joined by dots.
fn named_tensors(arena: &Arena, top: Id) -> Result<Vec<(String, &Tensor)>, String> {
    let top = unwrap_checkpoint(arena, top)?;
    let mut found = Vec::new();
    let mut visits = 0;
    let mut open = vec![(String::new(), top, 0)];
    while let Some((prefix, id, depth)) = open.pop() {
        let items = arena.items(id).unwrap_or_default();
        // A key that is set twice has its last value, as in Python.
        let last: BTreeMap<&str, usize> =
            items.iter().enumerate().filter_map(|(number, (key, _))| Some((arena.text(*key)?, number))).collect();
        for (number, (key, value)) in items.iter().enumerate() {
            visits += 1;
            if visits > MAX_VISITS || found.len() > MAX_TENSORS {
                return Err("the pickle describes more tensors than any model has".into());
            }
            let Some(key) = arena.text(*key).filter(|key| last.get(key) == Some(&number)) else { continue };
            if prefix.len() + key.len() > MAX_NAME_BYTES {
                return Err(format!("a name of {} bytes", prefix.len() + key.len()));
            }
            let name = || if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
            match arena.get(*value) {
                Object::Tensor(tensor) => found.push((name(), &**tensor)),
                Object::Dict(_) | Object::Instance(_) if depth < MAX_DEPTH => open.push((name(), *value, depth + 1)),
                Object::Dict(_) | Object::Instance(_) => return Err("objects are nested too deep".into()),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// Training scripts often wrap the state_dict in a dictionary with the epoch and the like. Two of them in one file are refused: which was
/// meant is not ours to guess.
fn unwrap_checkpoint(arena: &Arena, top: Id) -> Result<Id, String> {
    let Object::Dict(items) = arena.get(top) else { return Ok(top) };
    if items.iter().any(|(_, value)| matches!(arena.get(*value), Object::Tensor(_))) {
        return Ok(top);
    }
    let wrapped = |wanted: &'static str| {
        let (_, value) = items.iter().rev().find(|(key, _)| arena.text(*key) == Some(wanted))?;
        matches!(arena.get(*value), Object::Dict(_)).then_some((wanted, *value))
    };
    let found: Vec<(&str, Id)> = ["state_dict", "model_state_dict", "model"].into_iter().filter_map(wrapped).collect();
    match found[..] {
        [] => Ok(top),
        [(_, one)] => Ok(one),
        [(first, _), (second, _), ..] => Err(format!("holds both {first:?} and {second:?}: save the one that is wanted alone")),
    }
}
