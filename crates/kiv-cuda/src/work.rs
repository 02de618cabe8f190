//! What kernels are asked to do, and whether it fits the memory it names.
//!
//! Work names buffers, not addresses, and is checked before it is submitted, by
//! every device in the same way.

use crate::device::{Buffer, Memory};
use crate::search::Search;
use kiv_numeric::rope::Pairs;
use kiv_policy::RowFormat;

/// A place in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The buffer.
    pub buffer: Buffer,
    /// Bytes from its beginning.
    pub offset: usize,
}

impl At {
    /// So many bytes further.
    #[must_use]
    pub fn plus(self, bytes: usize) -> Self {
        Self {
            offset: self.offset + bytes,
            ..self
        }
    }
}

impl Buffer {
    /// A place in it.
    #[must_use]
    pub fn at(self, offset: usize) -> At {
        At {
            buffer: self,
            offset,
        }
    }
}

/// Why work was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// A buffer that the device does not have.
    #[error("there is no buffer {0:?}")]
    NoBuffer(Buffer),
    /// A buffer in the wrong kind of memory.
    #[error("buffer {0:?} is in memory that this work cannot use")]
    WrongMemory(Buffer),
    /// Beyond the end of a buffer.
    #[error("bytes {from}..{to} of buffer {buffer:?}, which has {len}")]
    Outside {
        /// The buffer.
        buffer: Buffer,
        /// First byte wanted.
        from: usize,
        /// Behind the last one.
        to: usize,
        /// Bytes that it has.
        len: usize,
    },
    /// A stream that the device does not have.
    #[error("there is no such stream")]
    NoStream,
    /// Lengths, offsets or types that there is no kernel for.
    #[error("no kernel does this: {0}")]
    Unsupported(&'static str),
}

/// A K or V cache tensor: `n_cells` cells, and in each the rows of all KV heads
/// side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Where it begins.
    pub at: At,
    /// Cells.
    pub n_cells: u32,
    /// KV heads in a cell.
    pub n_heads: u32,
    /// Values of a row: the head dimension.
    pub row_len: u32,
    /// Their type.
    pub format: RowFormat,
}

impl Cache {
    /// Bytes of the row of one KV head.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        self.format.row_bytes(self.row_len as usize)
    }

    /// Bytes of a cell.
    #[must_use]
    pub fn cell_bytes(&self) -> usize {
        self.head_bytes().saturating_mul(self.n_heads as usize)
    }

    /// Bytes of all cells.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.cell_bytes().saturating_mul(self.n_cells as usize)
    }

    /// The row of a KV head in a cell.
    #[must_use]
    pub fn row(&self, cell: u32, head: u32) -> At {
        let bytes = cell as usize * self.cell_bytes() + head as usize * self.head_bytes();
        self.at.plus(bytes)
    }
}

/// K or V: the cache that rows go to, and the type that they are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The cache.
    pub cache: Cache,
    /// Type of the cold rows.
    pub stored: RowFormat,
}

impl Side {
    /// Bytes of a cold row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.stored.row_bytes(self.cache.row_len as usize)
    }

    /// Whether rows change on their way.
    #[must_use]
    pub fn converts(&self) -> bool {
        self.stored != self.cache.format
    }

    /// Whether there is a kernel for such rows, wherever they are.
    ///
    /// # Errors
    /// [`WorkError::Unsupported`].
    pub fn check(&self) -> Result<(), WorkError> {
        let Cache { row_len, .. } = self.cache;
        let whole = |format: RowFormat| (row_len as usize).is_multiple_of(format.group_len());
        if row_len == 0 || !whole(self.stored) || !whole(self.cache.format) {
            return Err(WorkError::Unsupported("rows that are not whole groups"));
        }
        if self.converts()
            && (self.cache.format != RowFormat::F16
                || !matches!(self.stored, RowFormat::Q8_0 | RowFormat::Q4_0))
        {
            return Err(WorkError::Unsupported(
                "rows can become f16 from q8_0 or q4_0 only",
            ));
        }
        Ok(())
    }
}

/// One block of one KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where its K rows begin, and its V rows.
    pub sources: [At; 2],
    /// Where in the list of cells those of this block begin.
    pub cells: u32,
    /// KV head.
    pub head: u32,
}

/// Blocks of cold rows, K and V, into cells: of one layer, all KV heads at once.
/// No two moves may write the same row.
#[derive(Clone, Copy, Debug)]
pub struct Scatter<'a> {
    /// K and V.
    pub sides: [Side; 2],
    /// The blocks.
    pub moves: &'a [Move],
    /// Cells, in lists of `n_rows`.
    pub cells: &'a [u32],
    /// Rows of a block.
    pub n_rows: u32,
}

/// Rows of one block and KV head that turn by one angle per pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Turn {
    /// Where in the list of cells those of this block begin.
    pub cells: u32,
    /// KV head.
    pub head: u32,
    /// Which row of the table of angles.
    pub angle: u32,
}

/// K rows in cells, turned in place.
#[derive(Clone, Copy, Debug)]
pub struct Rerotate<'a> {
    /// The K cache, of halves.
    pub cache: Cache,
    /// What turns.
    pub turns: &'a [Turn],
    /// Cells, in lists of `n_rows`.
    pub cells: &'a [u32],
    /// (cos, sin), `[angles, n_rot / 2]`: see [`kiv_numeric::rope::Turn::table`].
    pub table: &'a [[f32; 2]],
    /// Rows of a block.
    pub n_rows: u32,
    /// Values of a row that turn, the first ones.
    pub n_rot: u32,
    /// Which of them with which.
    pub pairing: Pairs,
}

/// Sums of packed keys, in kiv-fastscan's layout, for several queries.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Groups of 32 keys, `16 * m` bytes each.
    pub packed: At,
    /// Groups that are there.
    pub n_packed: u32,
    /// The groups wanted, all of them if this is `None`.
    pub listed: Option<&'a [u32]>,
    /// Tables of all queries, `[n_queries, m, 16]`.
    pub tables: &'a [u8],
    /// Subquantizers.
    pub m: u32,
    /// Where sums go: u16, `[n_queries, 32 * groups]`.
    pub sums: At,
}

impl Scan<'_> {
    /// Groups that are scanned.
    #[must_use]
    pub fn n_groups(&self) -> usize {
        self.listed.map_or(self.n_packed as usize, <[u32]>::len)
    }

    /// Queries.
    #[must_use]
    pub fn n_queries(&self) -> usize {
        self.tables.len() / (16 * self.m as usize).max(1)
    }
}

/// Inner products of queries with centroids, in the form of
/// [`crate::reference::entered`].
#[derive(Clone, Copy, Debug)]
pub struct Coarse<'a> {
    /// f32, `[n_queries, dim]`.
    pub queries: &'a [f32],
    /// f32, `[n_lists, dim]`.
    pub centroids: At,
    /// Centroids.
    pub n_lists: u32,
    /// A multiple of 16.
    pub dim: u32,
    /// Where products go: u32, `[n_queries, n_lists]`.
    pub scores: At,
}

impl Coarse<'_> {
    /// Queries.
    #[must_use]
    pub fn n_queries(&self) -> usize {
        self.queries.len() / (self.dim as usize).max(1)
    }
}

/// Type of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// u16: sums of [`Scan`].
    Sums,
    /// u32: products of [`Coarse`].
    Products,
}

impl Scores {
    /// Bytes of one.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sums => 2,
            Self::Products => 4,
        }
    }
}

/// The best of every tile of every query's scores. Of equal ones the first; what
/// is taken keeps its order. Again over what it gave, with its names, until one
/// tile is left, it finds the best of all.
#[derive(Clone, Copy, Debug)]
pub struct Top {
    /// Their type.
    pub scores: Scores,
    /// `[n_queries, row_stride]`, of which the first `n` count.
    pub from: At,
    /// What scores are called, u32 of the same shape; their places if `None`.
    pub names: Option<At>,
    /// Queries.
    pub n_queries: u32,
    /// Scores of a query.
    pub n: u32,
    /// Scores from one query's first to the next one's.
    pub row_stride: u32,
    /// Scores of a tile.
    pub tile: u32,
    /// How many are wanted of each tile.
    pub k: u32,
    /// Where scores go: `[n_queries, n_out()]`.
    pub to: At,
    /// Where names go: u32 of the same shape.
    pub to_names: At,
}

impl Top {
    /// Tiles of a query.
    #[must_use]
    pub fn n_tiles(&self) -> u32 {
        self.n.div_ceil(self.tile.max(1))
    }

    /// Scores that come out for every query.
    #[must_use]
    pub fn n_out(&self) -> u32 {
        let Some(whole) = self.n_tiles().checked_sub(1) else {
            return 0;
        };
        let last = self.n - whole * self.tile;
        whole * self.k.min(self.tile) + self.k.min(last)
    }
}

/// What a kernel is asked to do.
#[derive(Clone, Copy, Debug)]
pub enum Work<'a> {
    /// Blocks into cells.
    Scatter(Scatter<'a>),
    /// K rows to other positions.
    Rerotate(Rerotate<'a>),
    /// Sums of packed keys.
    Scan(Scan<'a>),
    /// Products with centroids.
    Coarse(Coarse<'a>),
    /// The best of scores.
    Top(Top),
    /// The best keys of a layer's indices.
    Search(Search<'a>),
}

impl<'a> From<Search<'a>> for Work<'a> {
    fn from(search: Search<'a>) -> Self {
        Self::Search(search)
    }
}

/// Bytes that work reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Where.
    pub at: At,
    /// How many.
    pub bytes: usize,
    /// Whether they are written.
    pub writes: bool,
}

impl Work<'_> {
    /// What it reads and writes in buffers, after checking that there is a kernel for
    /// it and that all of it is there. `look_up` tells of a buffer where it is and its
    /// bytes. Of a cache all rows are named if any are written: this comes before
    /// every launch, and there may be thousands of them.
    ///
    /// # Errors
    /// [`WorkError`].
    pub fn check(
        &self,
        look_up: impl Fn(Buffer) -> Option<(Memory, usize)>,
    ) -> Result<Vec<Access>, WorkError> {
        let accesses = self.list(false)?;
        for access in &accesses {
            let buffer = access.at.buffer;
            let memory = inside(access.at, access.bytes, &look_up)?;
            if access.writes && memory == Memory::Pinned {
                return Err(WorkError::WrongMemory(buffer));
            }
        }
        Ok(accesses)
    }

    /// What it reads and writes in buffers, row by row, whether or not all of it is
    /// there.
    ///
    /// # Errors
    /// [`WorkError::Unsupported`].
    pub fn rows(&self) -> Result<Vec<Access>, WorkError> {
        self.list(true)
    }

    fn list(&self, rows: bool) -> Result<Vec<Access>, WorkError> {
        let mut accesses = Vec::new();
        match self {
            Self::Scatter(work) => work.list(rows, &mut accesses)?,
            Self::Rerotate(work) => work.list(rows, &mut accesses)?,
            Self::Scan(work) => work.list(&mut accesses)?,
            Self::Coarse(work) => work.list(&mut accesses)?,
            Self::Top(work) => work.list(&mut accesses)?,
            Self::Search(work) => work.list(&mut accesses)?,
        }
        Ok(accesses)
    }
}

/// Checks that bytes are there; where they are.
///
/// # Errors
/// [`WorkError`].
pub fn inside(
    at: At,
    bytes: usize,
    look_up: impl Fn(Buffer) -> Option<(Memory, usize)>,
) -> Result<Memory, WorkError> {
    let (memory, len) = look_up(at.buffer).ok_or(WorkError::NoBuffer(at.buffer))?;
    let to = at.offset.saturating_add(bytes);
    if to > len {
        return Err(WorkError::Outside {
            buffer: at.buffer,
            from: at.offset,
            to,
            len,
        });
    }
    Ok(memory)
}

fn reads(at: At, bytes: usize) -> Access {
    Access {
        at,
        bytes,
        writes: false,
    }
}

fn writes(at: At, bytes: usize) -> Access {
    Access {
        writes: true,
        ..reads(at, bytes)
    }
}

/// The cells of one block of a list.
fn cells_of(cells: &[u32], first: u32, n_rows: u32) -> Result<&[u32], WorkError> {
    let first = first as usize;
    cells
        .get(first..first + n_rows as usize)
        .ok_or(WorkError::Unsupported("a block without cells"))
}

/// All rows of a cache, if they are not named one by one.
fn list_cache(cache: &Cache, rows: bool, accesses: &mut Vec<Access>) -> Result<(), WorkError> {
    if u32::try_from(cache.cell_bytes()).is_err() {
        return Err(WorkError::Unsupported("cells of 4 GiB"));
    }
    if !rows {
        accesses.push(writes(cache.at, cache.bytes()));
    }
    Ok(())
}

/// Rows of a KV head in cells that are in the cache; named one by one if `rows`.
fn list_rows(
    cache: &Cache,
    cells: &[u32],
    head: u32,
    rows: bool,
    accesses: &mut Vec<Access>,
) -> Result<(), WorkError> {
    if head >= cache.n_heads || cells.iter().any(|cell| *cell >= cache.n_cells) {
        return Err(WorkError::Unsupported(
            "a cell or KV head that is not there",
        ));
    }
    if rows {
        let row = |cell: &u32| writes(cache.row(*cell, head), cache.head_bytes());
        accesses.extend(cells.iter().map(row));
    }
    Ok(())
}

impl Scatter<'_> {
    /// Whether any rows change on their way.
    #[must_use]
    pub fn converts(&self) -> bool {
        self.sides.iter().any(Side::converts)
    }

    /// The widest unit, in bytes, that all rows are made of.
    #[must_use]
    pub fn unit(&self) -> usize {
        let mut all = 16;
        for (i, side) in self.sides.iter().enumerate() {
            all |= side.row_bytes() | side.cache.head_bytes() | side.cache.at.offset;
            for from in self.moves {
                all |= from.sources[i].offset;
            }
        }
        1 << all.trailing_zeros()
    }

    /// Bytes of cold rows that are read.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let rows: usize = self.sides.iter().map(Side::row_bytes).sum();
        rows * self.n_rows as usize * self.moves.len()
    }

    fn list(&self, rows: bool, accesses: &mut Vec<Access>) -> Result<(), WorkError> {
        for side in &self.sides {
            side.check()?;
            list_cache(&side.cache, rows, accesses)?;
        }
        // Converted rows are written in words of two halves; rows beside them that
        // are not are copied in the same words.
        let aligned = if self.converts() {
            let words = |at: usize| at.is_multiple_of(4);
            self.sides.iter().enumerate().all(|(i, side)| {
                words(side.cache.at.offset)
                    && words(side.cache.head_bytes())
                    && (side.converts() || self.moves.iter().all(|m| words(m.sources[i].offset)))
            })
        } else {
            self.unit() >= 2
        };
        if !aligned {
            return Err(WorkError::Unsupported("rows at such odd places"));
        }
        for from in self.moves {
            let cells = cells_of(self.cells, from.cells, self.n_rows)?;
            for (side, source) in self.sides.iter().zip(from.sources) {
                let bytes = side.row_bytes().saturating_mul(self.n_rows as usize);
                accesses.push(reads(source, bytes));
                list_rows(&side.cache, cells, from.head, rows, accesses)?;
            }
        }
        Ok(())
    }
}

impl Rerotate<'_> {
    fn list(&self, rows: bool, accesses: &mut Vec<Access>) -> Result<(), WorkError> {
        if self.cache.format != RowFormat::F16 {
            return Err(WorkError::Unsupported("only f16 rows turn"));
        }
        list_cache(&self.cache, rows, accesses)?;
        if !self.n_rot.is_multiple_of(2) || self.n_rot == 0 || self.n_rot > self.cache.row_len {
            return Err(WorkError::Unsupported("such a number of values that turn"));
        }
        if !self.cache.at.offset.is_multiple_of(2) {
            return Err(WorkError::Unsupported("rows at such odd places"));
        }
        let half = self.n_rot as usize / 2;
        for turn in self.turns {
            if (turn.angle as usize + 1) * half > self.table.len() {
                return Err(WorkError::Unsupported("an angle that is not there"));
            }
            let cells = cells_of(self.cells, turn.cells, self.n_rows)?;
            list_rows(&self.cache, cells, turn.head, rows, accesses)?;
        }
        Ok(())
    }
}

impl Scan<'_> {
    fn list(&self, accesses: &mut Vec<Access>) -> Result<(), WorkError> {
        let m = self.m as usize;
        if !(2..=256).contains(&m)
            || !m.is_multiple_of(2)
            || !self.tables.len().is_multiple_of(16 * m)
        {
            return Err(WorkError::Unsupported("such a number of subquantizers"));
        }
        if !self.packed.offset.is_multiple_of(16) || !self.sums.offset.is_multiple_of(2) {
            return Err(WorkError::Unsupported("codes at such odd places"));
        }
        if self
            .listed
            .is_some_and(|l| l.iter().any(|g| *g >= self.n_packed))
        {
            return Err(WorkError::Unsupported("a group that is not there"));
        }
        accesses.push(reads(self.packed, self.n_packed as usize * 16 * m));
        let sums = self.n_queries() * self.n_groups() * 32;
        accesses.push(writes(self.sums, 2 * sums));
        Ok(())
    }
}

impl Coarse<'_> {
    fn list(&self, accesses: &mut Vec<Access>) -> Result<(), WorkError> {
        let dim = self.dim as usize;
        if dim == 0 || !dim.is_multiple_of(16) || !self.queries.len().is_multiple_of(dim) {
            return Err(WorkError::Unsupported("vectors that are not of 16s"));
        }
        if !self.centroids.offset.is_multiple_of(4) || !self.scores.offset.is_multiple_of(4) {
            return Err(WorkError::Unsupported("centroids at such odd places"));
        }
        let n = self.n_lists as usize;
        let bytes = |each: usize| n.saturating_mul(each).saturating_mul(4);
        accesses.push(reads(self.centroids, bytes(dim)));
        accesses.push(writes(self.scores, bytes(self.n_queries())));
        Ok(())
    }
}

impl Top {
    fn list(&self, accesses: &mut Vec<Access>) -> Result<(), WorkError> {
        if self.n == 0 || self.tile == 0 || self.k == 0 || self.row_stride < self.n {
            return Err(WorkError::Unsupported("the best of nothing"));
        }
        let bytes = self.scores.bytes();
        let names = self.names.map_or(0, |at| at.offset);
        if !(self.from.offset | self.to.offset).is_multiple_of(bytes)
            || !(names | self.to_names.offset).is_multiple_of(4)
        {
            return Err(WorkError::Unsupported("scores at such odd places"));
        }
        // Numbers of 32 bits: only the last product may be too large.
        let queries = self.n_queries as usize;
        let n = queries * self.row_stride as usize;
        accesses.push(reads(self.from, n.saturating_mul(bytes)));
        accesses.extend(self.names.map(|at| reads(at, n.saturating_mul(4))));
        let n = queries * self.n_out() as usize;
        accesses.push(writes(self.to, n.saturating_mul(bytes)));
        accesses.push(writes(self.to_names, n.saturating_mul(4)));
        Ok(())
    }
}
