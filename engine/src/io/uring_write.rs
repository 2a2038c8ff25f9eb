//! The writer loop on io_uring: one thread, many jobs in flight.

use std::io;
use std::sync::Arc;

use async_channel::Receiver;
use crossbeam::channel::Sender;

use super::aligned::AlignedBuf;
use super::file::OpenFile;
use super::slots::{Slot, Slots};
use super::threads::abandon;
use super::uring::{self, SharedBuf};
use super::write::{Piece, WriteJob, WriteResult, Writing};
use crate::error::Result;
use crate::limits;

/// Pieces in flight of jobs that have several: they are small, and a disk gets on with many small writes at a time.
const PIECES_IN_FLIGHT: usize = 32;
/// What they may take of the process's descriptors: each has a duplicate of its file's while it is written.
const PIECES_SHARE: f64 = 0.25;

/// Serves `jobs` until it is closed. An error is that of the ring's set-up, and no job was taken.
pub(super) fn run<T: 'static>(
    depth: usize,
    jobs: &Receiver<WriteJob<T>>,
    done: &Sender<WriteResult<T>>,
) -> io::Result<()> {
    let pieces = PIECES_IN_FLIGHT.min(limits::descriptors_for(PIECES_SHARE));
    uring::block_on(depth + pieces, dispatch(depth, pieces, jobs, done))
}

async fn dispatch<T: 'static>(
    depth: usize,
    pieces: usize,
    jobs: &Receiver<WriteJob<T>>,
    done: &Sender<WriteResult<T>>,
) {
    let slots = Slots::new(depth);
    let piece_slots = Arc::new(Slots::new(pieces));
    loop {
        let slot = slots.take().await;
        let Ok(job) = jobs.recv().await else { break };
        let (jobs, done, piece_slots) = (jobs.clone(), done.clone(), piece_slots.clone());
        uring::spawn(async move {
            let result = write_job(job, &piece_slots).await;
            if done.send(result).is_err() {
                abandon(&jobs);
            }
            drop(slot);
        });
    }
    slots.drain().await;
}

async fn write_job<T>(job: WriteJob<T>, slots: &Slots) -> WriteResult<T> {
    let (mut writing, mut buf) = Writing::new(job)?;
    let bytes = writing.bytes();
    let result = match &mut writing.pieces[..] {
        [] => Ok(()),
        [piece] => {
            let mut result = Ok(());
            while let Some((range, at)) = piece.next() {
                let transferred;
                (transferred, buf) = uring::write_at(&writing.file, buf, range, at).await;
                result = piece.advance(transferred, &writing.file);
                if result.is_err() {
                    break;
                }
            }
            result
        }
        _ => {
            let shared = SharedBuf(Arc::new(std::mem::replace(&mut buf.buf, AlignedBuf::empty())));
            let result =
                write_pieces(&writing.file, std::mem::take(&mut writing.pieces), &shared, slots).await;
            // All pieces are done, so this is the last handle; were it not, a new buffer would do the pool as well.
            let capacity = shared.0.len();
            buf.buf = Arc::try_unwrap(shared.0).unwrap_or_else(|_| AlignedBuf::new(capacity));
            result
        }
    };
    match result {
        Ok(()) => Ok((writing.tag, bytes)),
        Err(e) => Err((writing.tag, e)),
    }
}

/// Writes all pieces, several at a time, and waits for each of them also when one fails.
async fn write_pieces(
    file: &Arc<OpenFile>,
    pieces: Vec<Piece>,
    shared: &SharedBuf,
    slots: &Slots,
) -> Result<()> {
    let (verdict, verdicts) = async_channel::unbounded();
    for piece in pieces {
        let slot = slots.take().await;
        let (file, shared, verdict) = (file.clone(), shared.clone(), verdict.clone());
        uring::spawn(async move {
            let result = write_piece(&file, shared, piece, slot).await;
            // Unbounded, and its receiver outlives all senders.
            let _ = verdict.try_send(result);
        });
    }
    drop(verdict);
    let mut result = Ok(());
    while let Ok(piece) = verdicts.recv().await {
        result = result.and(piece);
    }
    result
}

async fn write_piece(file: &OpenFile, mut buf: SharedBuf, mut piece: Piece, _slot: Slot) -> Result<()> {
    while let Some((range, at)) = piece.next() {
        let result;
        (result, buf) = uring::write_at(file, buf, range, at).await;
        piece.advance(result, file)?;
    }
    Ok(())
}
