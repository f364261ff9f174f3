//! Which search owns which row of the decoder, and how rows move when searches finish or beams change places.

use std::collections::BTreeMap;

use super::search::Search;

/// A search that has rows.
pub(super) struct Active {
    pub ticket: u64,
    pub draw: u32,
    pub search: Search,
    /// Row of each of the search's rows.
    rows: Vec<usize>,
}

/// The searches in the decoder's rows. Numbers of searches grow, so their order is the order of admission, which is list order.
#[derive(Default)]
pub(super) struct Batch {
    active: BTreeMap<u64, Active>,
    /// Owner of each row: a search's number, and which of its rows.
    owners: Vec<(u64, usize)>,
    next_number: u64,
}

impl Batch {
    pub fn num_searches(&self) -> usize {
        self.active.len()
    }

    /// Adds a search with `num_rows` new rows after those there are.
    pub fn admit(&mut self, ticket: u64, draw: u32, search: Search, num_rows: usize) {
        let first = self.owners.len();
        self.owners.extend((0..num_rows).map(|row| (self.next_number, row)));
        let active = Active { ticket, draw, search, rows: (first..first + num_rows).collect() };
        self.active.insert(self.next_number, active);
        self.next_number += 1;
    }

    /// Owner of each row, in order: the search, and which of its rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = (&Active, usize)> {
        self.owners.iter().map(|(number, row)| (&self.active[number], *row))
    }

    /// The searches in order of admission, by number, with their rows.
    pub fn searches(&self) -> impl Iterator<Item = (u64, &[usize])> {
        self.active.iter().map(|(&number, active)| (number, active.rows.as_slice()))
    }

    pub fn search_mut(&mut self, number: u64) -> &mut Search {
        &mut self.active.get_mut(&number).expect("the number of an active search").search
    }

    pub fn remove(&mut self, number: u64) -> Active {
        self.active.remove(&number).expect("the number of an active search")
    }

    /// Gives rows anew after a step: `parents` names, for each search that is still there, which of its old rows each of its rows goes
    /// on from. Returns the old row of each new row, for [`Decoder::gather_rows`](crate::models::Decoder::gather_rows). Rows stay
    /// where they are wherever they can.
    pub fn rearrange(&mut self, parents: &BTreeMap<u64, Vec<usize>>) -> Vec<usize> {
        let num_rows = parents.values().map(Vec::len).sum();
        let mut places: Vec<Option<(u64, usize, usize)>> = vec![None; num_rows];
        let mut movers = Vec::new();
        for (&number, parents) in parents {
            for (row, &parent) in parents.iter().enumerate() {
                let source = self.active[&number].rows[parent];
                match places.get_mut(source) {
                    Some(place @ None) => *place = Some((number, row, source)),
                    _ => movers.push((number, row, source)),
                }
            }
        }
        let holes = places.iter_mut().filter(|place| place.is_none());
        holes.zip(movers).for_each(|(place, mover)| *place = Some(mover));

        for (number, parents) in parents {
            self.active.get_mut(number).expect("the number of an active search").rows = vec![0; parents.len()];
        }
        self.owners.clear();
        let mut sources = Vec::with_capacity(num_rows);
        for (place, content) in places.into_iter().enumerate() {
            let (number, row, source) = content.expect("there are as many movers as holes");
            self.active.get_mut(&number).expect("the number of an active search").rows[row] = place;
            self.owners.push((number, row));
            sources.push(source);
        }
        sources
    }
}
