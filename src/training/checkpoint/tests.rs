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
    let mut bits = crate::random::Stream::new(3);
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
