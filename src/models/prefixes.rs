//! Keys and values of the prefixes that rows begin with, each once.

use super::cached::untouched;

/// As many places as there are rows: more prefixes than rows are never in use.
pub struct Prefixes {
    /// Keys and values of every layer, one after the other: [2 * n_layer][places, G', P, D'].
    caches: Vec<Vec<f32>>,
    /// Numbers of a place in each.
    size: usize,
    /// Rows that begin with what is in each place.
    users: Vec<usize>,
    /// Of each row.
    places: Vec<usize>,
    /// Where each prefix of the last prefill is, if it is anywhere yet.
    held: Vec<Option<usize>>,
}

impl Prefixes {
    pub fn new(caches: usize, max_rows: usize, size: usize) -> Self {
        let count = max_rows.max(1);
        Self { caches: untouched(caches, count * size), size, users: vec![0; count], places: vec![], held: vec![] }
    }

    /// Places, N.
    pub fn count(&self) -> usize {
        self.users.len()
    }

    pub fn caches(&mut self) -> &mut [Vec<f32>] {
        &mut self.caches
    }

    /// Each row's place.
    pub fn owners(&self) -> Vec<i32> {
        self.places.iter().map(|&place| place as i32).collect()
    }

    /// There are `count` other prefixes now.
    pub fn forget_held(&mut self, count: usize) {
        self.held = vec![None; count];
    }

    /// Appends a row that begins with prefix `prefix` of `held` [2 * n_layer][prefixes, G', P, D']. There must be fewer rows than places.
    pub fn start_row(&mut self, prefix: usize, held: &[Vec<f32>]) {
        let place = self.held[prefix].unwrap_or_else(|| {
            let place =
                self.users.iter().position(|&users| users == 0).expect("each row has one place, and there are fewer rows");
            for (cache, held) in self.caches.iter_mut().zip(held) {
                cache[place * self.size..][..self.size].copy_from_slice(&held[prefix * self.size..][..self.size]);
            }
            place
        });
        self.held[prefix] = Some(place);
        self.users[place] += 1;
        self.places.push(place);
    }

    /// New row `i` is old row `sources[i]`.
    pub fn gather_rows(&mut self, sources: &[usize]) {
        self.places = sources.iter().map(|&source| self.places[source]).collect();
        self.users.fill(0);
        self.places.iter().for_each(|&place| self.users[place] += 1);
        // Another prefix may come to where none is in use any more.
        let users = &self.users;
        self.held.iter_mut().for_each(|held| *held = held.filter(|&place| users[place] > 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_there_once_and_its_place_is_free_when_no_row_is_left() {
        let held =
            |first: f32| vec![vec![first, first, first + 1.0, first + 1.0], vec![-first, -first, -first - 1.0, -first - 1.0]];
        let mut prefixes = Prefixes::new(2, 3, 2);
        prefixes.forget_held(2);
        let of_rows = |prefixes: &mut Prefixes| -> Vec<f32> {
            let owners = prefixes.owners();
            owners.iter().map(|&place| prefixes.caches()[0][place as usize * 2]).collect()
        };
        [1, 0, 1].iter().for_each(|&prefix| prefixes.start_row(prefix, &held(10.0)));
        assert_eq!(of_rows(&mut prefixes), [11.0, 10.0, 11.0]);
        assert_eq!(prefixes.owners(), [0, 1, 0]);
        prefixes.gather_rows(&[2, 0]);
        prefixes.forget_held(2);
        prefixes.start_row(0, &held(20.0));
        assert_eq!(of_rows(&mut prefixes), [11.0, 11.0, 20.0]);
        // What was held and is in no row any more is brought again.
        prefixes.gather_rows(&[0]);
        prefixes.start_row(1, &held(20.0));
        prefixes.start_row(0, &held(20.0));
        assert_eq!(of_rows(&mut prefixes), [11.0, 21.0, 20.0]);
        assert_eq!(prefixes.caches()[1], [-11.0, -11.0, -21.0, -21.0, -20.0, -20.0]);
    }
}
