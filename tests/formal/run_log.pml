/* The run log: may two histories ever stand in it? Checked exhaustively by check.sh.

   WHAT IS MODELLED (names of runtime/agent/run_log.cc in brackets)
   - The file server: slots that are filled by link(2), each visible at once to everybody and on disk only after an
     fsync of log/. A power cut of the server takes any subset of the entries that no fsync followed. Content is on
     disk before the link (fsync of the temporary file).
   - COORDINATORS that read (Refresh), take the lead (LEAD; its slot is the term), begin generations (START) or go on
     with the one there is, commit (COMMIT), end (END). They append to the slot that they expect [Append: next_slot()],
     then fsync log/, then read back by name [Publish]. Whose record it is, is told by its nonce (`who`: new for
     each life of a coordinator and for each attempt at the same slot).
   - A reply may be lost: the client sends the request again, or gets an error and looks at the slot [Link].
   - A crash at any point, LIVES - 1 times per coordinator; the next life has nothing but the log. The request of the
     dead life stays on its way and may be executed at any later time, or never. A stall is just a process that
     does not move, so every stall is in the model, a coordinator of another job is one like the others.
   - STALE: a reader may see the log shorter than it is (NFS), never with a hole; also when it polls.

   WHAT IS NOT: an fsync of log/ that does nothing. Linux's NFS client only counts it (nfs_fsync_dir); there the rule
   below needs a name that is made and removed in log/ instead, which the server must have on disk before it answers.
   Content of records, ATTEMPT, VERIFIED and RETIRE (for the log they are COMMITs), corruption, a read back that is
   answered by a cache which outlived the server's power, link(2) that is not atomic, the look for holes in Open.

   THE OPEN POINT: A RECORD THAT IS READ BEFORE IT IS ON DISK
   As first written (-DNO_READER_SYNC) a reader acts on what it reads. A links a record into slot n and has not synced
   yet. B reads it. The server loses its power, and with it slot n; the clients live on. B links its LEAD into slot
   n + 1, syncs, reads back: all well, it leads. But its record hangs on one that nobody has (-DORACLE=2: what is
   acknowledged stands behind a hole). Whoever has not seen slot n - the coordinator that led all the time, a new one, or
   A, whose own reading back found nothing - fills it, and is acknowledged as well: two leaders, two acknowledged
   histories (-DORACLE=3). The digest chain makes that DataLoss at the next start instead of a silent fork, but what one
   of them did is lost, and the run is dead until a person mends it.

   The rule that repairs it: WHOEVER ACTS ON A RECORD THAT ANOTHER WROTE FIRST FSYNCS log/ AND THEN READS THE RECORD
   AGAIN. The order is the point. Fsync without reading again (-DNO_RECHECK) fails: the power cut may lie between
   reading and fsync, which then syncs nothing and says OK. Fsync before reading (-DSYNC_BEFORE_READ) fails: the record
   may be linked in between. It is the writer's own order too (link, fsync, read back): -DNO_READ_BACK fails likewise.
   With the rule slot n is on disk before anybody asks for slot n + 1, so a hole cannot come about at all. Stepping down
   needs no fsync: doing it in vain harms nobody.

   Its limit (-DCUTS=2 -DRESENT): the power fails twice around one reading, and in between the client of the writer
   sends its link again. Then what is read again is there, but by the second link, and the second cut takes it. One cut
   is harmless with links that are sent again (-DRESENT holds), two are without them (-DCUTS=2 holds).

   PROPERTIES, asserted where the server or a coordinator acts; the checks see everything and share no rule with the
   coordinators.
   1 a slot is filled at most once for ever (but for a record that a power cut took before it counted);
   2 a record hangs on the record that its writer saw: the lineage is a chain, without a hole;
   3 START, COMMIT, END are written under the latest LEAD by its holder, not behind its END; START's generation is higher
     than all before; COMMIT's is the latest START's;
   4 what was acknowledged is there, and nothing that was acknowledged is ever lost; a slot is acknowledged to one
     writer at most;
   5 nobody is stuck: the model has no end state but a full log; with -DCALM (ltl, weak fairness): once faults have
     stopped and one coordinator is left, a COMMIT of it is acknowledged, or the log is full. */

#ifndef NC
#define NC 2 /* Coordinators. */
#endif
#ifndef N
#define N 4 /* Slots. */
#endif
#ifndef LIVES
#define LIVES 2 /* Of each coordinator. */
#endif
#ifndef CUTS
#define CUTS 1 /* Power cuts of the server. */
#endif
#ifndef ORACLE
#define ORACLE 1 /* 1: all checks. 2: only what is acknowledged. 3: only two acknowledged histories. */
#endif

#define NONE 0 /* Kinds of records. */
#define LEAD 1
#define START 2
#define COMMIT 3
#define FINISH 4 /* END, which spin has a meaning for. */

#define IDLE 0 /* Stages of a coordinator. */
#define READ 1
#define SYNCED 2
#define READY 3
#define LINKING 4
#define LINKED 5
#define DURABLE 6
#define DEAD 7

#define LINK_OK 1 /* Replies. */
#define LOOK 2    /* EEXIST, or an error that says nothing about what happened. */

#define BIT(i) (1 << (i))
#define FILLED(i) (slot[i].kind != NONE)
/* A nonce: new for each life, and for each attempt at the same slot, of which a power cut alone makes a second. */
#define WHO(c, life) (1 + (c) + NC * ((life) + LIVES * cuts))
#define LIFE_OF(who) (((who) - 1) % (NC * LIVES))

typedef Record {
  byte kind;
  byte who;  /* The nonce: which life of which coordinator. */
  byte prev; /* `who` of the record before, as its writer saw it: the digest chain. */
  byte gen;
  byte term  /* 1 + slot of the LEAD under which it is written; of a LEAD: 0. */
}

Record slot[N]; /* What the server shows. */
byte synced;    /* Bit i: the name of slot i is on disk. */
byte acked;     /* Bit i: its writer was told that slot i holds its record. */
byte cuts = CUTS;

/* Requests on their way: of coordinator c's present life at c, of its life before at NC + c. */
bool sent[2 * NC];
byte at[2 * NC];
Record want[2 * NC];
byte reply[NC];
byte stage[NC];

#ifdef CALM
bool calm, done;
byte left; /* The coordinator that is left. */
#define FAULTS !calm
#define MARK_DONE done = done || (calm && want[c].kind == COMMIT)
ltl progress { [] (calm -> <> (done || FILLED(N - 1))) }
#else
#define MARK_DONE skip
#define FAULTS true
#endif

#ifdef NO_FSYNC_BEFORE_LINK /* The name is on disk, what it names is not. */
#define ON_DISK(i) false
#else
#define ON_DISK(i) (synced & BIT(i))
#endif
#ifdef NO_READ_BACK
#define READ_BACK true
#else
#define READ_BACK MINE
#endif

#define COPY(to, from) \
  to.kind = from.kind; to.who = from.who; to.prev = from.prev; to.gen = from.gen; to.term = from.term
#define CLEAR(r) r.kind = NONE; r.who = 0; r.prev = 0; r.gen = 0; r.term = 0

/* Properties 2 and 3 for request r, which is about to fill its slot. */
inline CheckRecord(r) {
  if
  :: at[r] > 0 -> assert(FILLED(at[r] - 1) && slot[at[r] - 1].who == want[r].prev)
  :: else -> assert(want[r].prev == 0)
  fi;
  k = 0; lead = 0; last = 0; over = false;
  do
  :: k < at[r] ->
     if
     :: slot[k].kind == LEAD -> lead = k + 1; over = false
     :: slot[k].kind == START -> last = slot[k].gen
     :: slot[k].kind == FINISH -> over = true
     :: else
     fi;
     k++
  :: else -> break
  od;
  if
  :: want[r].kind == LEAD
  :: else ->
     assert(want[r].term == lead && lead > 0 && !over);
     assert(LIFE_OF(slot[lead - 1].who) == LIFE_OF(want[r].who));
     if
     :: want[r].kind == START -> assert(want[r].gen > last)
     :: want[r].kind == COMMIT -> assert(want[r].gen == last && last > 0)
     :: else
     fi
  fi;
  k = 0; lead = 0; last = 0; over = false
}

/* link(2) at the server. */
inline Execute(r) {
#ifdef FIRST_FREE /* The writer does not say which slot it expects. */
  at[r] = 0;
  do
  :: at[r] < N - 1 && FILLED(at[r]) -> at[r]++
  :: else -> break
  od;
#endif
  linked = false;
  if
#ifdef OVERWRITE /* rename(2) */
  :: FILLED(at[r]) && slot[at[r]].who != want[r].who -> assert(false) /* Property 1. */
#endif
  :: FILLED(at[r])
  :: else ->
#if ORACLE == 1
     CheckRecord(r);
#endif
     linked = true;
     COPY(slot[at[r]], want[r])
  fi
}

#define FORGET(r) sent[r] = false; at[r] = 0; CLEAR(want[r])

/* A request on its way: executed once, more often when the reply is lost and the client sends it again, or never. */
proctype Wire(byte r) {
  byte k, lead, last;
  bool over, linked;
end:
  do
  :: atomic {
       sent[r] -> d_step { Execute(r) };
       if
#ifdef RESENT
       :: FAULTS -> skip
#endif
       :: r >= NC -> FORGET(r)
       :: r < NC && linked -> sent[r] = false; reply[r] = LINK_OK
       :: r < NC && (!linked || FAULTS) -> sent[r] = false; reply[r] = LOOK
       fi;
       linked = false
     }
  od
}

/* The server's power is cut: any subset of what is not on disk is gone. */
proctype Power() {
  byte k;
  bool lost;
end:
  do
  :: atomic {
       cuts > 0 && FAULTS ->
       do
       :: k < N && FILLED(k) && ON_DISK(k) -> k++
       :: k < N && !FILLED(k) -> k++
       :: k < N && FILLED(k) && !ON_DISK(k) -> k++ /* It had been written all the same. */
       :: k < N && FILLED(k) && !ON_DISK(k) ->
          assert(!(acked & BIT(k))); /* Property 4. */
          CLEAR(slot[k]);
          lost = true; k++
       :: k == N -> break
       od;
       if
       :: lost -> cuts--
       :: !lost -> skip
       fi;
       k = 0; lost = false
     }
#ifdef CALM
  :: atomic { /* Faults have stopped. All coordinators but one are dead for good, not so what they had asked for. */
       !calm -> calm = true; cuts = 0;
       if
       :: left = 0
       :: left = NC - 1
       fi;
       for (k : 0 .. NC - 1) {
         if
         :: k != left -> stage[k] = DEAD; reply[k] = 0
         :: k == left -> skip
         fi
       }
       k = 0
     }
#endif
  od
}

/* A request of a dead life for a slot that is on disk cannot do anything: dropped, to save states. */
#if defined(FIRST_FREE) || defined(OVERWRITE) || defined(NO_FSYNC_BEFORE_LINK)
#define FORGET_DEAD k = 0
#else
#define FORGET_DEAD \
  k = NC; \
  do \
  :: k < 2 * NC && sent[k] && (synced & BIT(at[k])) -> FORGET(k); k++ \
  :: k < 2 * NC && !(sent[k] && (synced & BIT(at[k]))) -> k++ \
  :: k == 2 * NC -> break \
  od; \
  k = 0
#endif

#define NAMES_ON_DISK /* fsync of log/: all names that are there now. */ \
  k = 0; \
  do \
  :: k < N && FILLED(k) -> synced = synced | BIT(k); k++ \
  :: k < N && !FILLED(k) -> k++ \
  :: k == N -> break \
  od; \
  FORGET_DEAD

/* RunLog::Refresh: on from what is known, to the first slot that is not there, or less far where that is allowed. */
inline Refresh() {
  do
  :: known < N && FILLED(known) ->
     prev = slot[known].who;
     if
     :: slot[known].kind == START -> gen = slot[known].gen
     :: else
     fi;
     known++
#ifdef STALE
  :: FAULTS -> break
#endif
  :: known == N || !FILLED(known) -> break
  od
}

/* RunLog::Append: asks for the slot that this coordinator expects. */
#define ASK(what, generation) \
  at[c] = known; want[c].kind = what; want[c].who = WHO(c, life); want[c].prev = prev; want[c].gen = generation; \
  want[c].term = term; sent[c] = true; stage[c] = LINKING; ACK_EARLY

#define DROP_ROLE term = 0
#define START_OVER known = 0; prev = 0; gen = 0

/* The record of the slot that it asked for is its own. */
#ifdef SAME_HOLDER_IS_MINE /* Told by the name of the holder, which its former life has too. */
#define MINE (FILLED(known) && (slot[known].who - 1) % NC == c)
#elif defined(EEXIST_IS_MINE)
#define MINE FILLED(known)
#else
#define MINE (FILLED(known) && slot[known].who == want[c].who)
#endif

#ifdef REACH /* A generation is adopted and commits: what holds of nothing but beginnings would be worth nothing. */
#define REACHED assert(known < 3 || slot[known].kind != COMMIT || slot[known - 1].kind != LEAD)
#else
#define REACHED skip
#endif

/* It believes that its record is in the log. Property 4. */
inline Acknowledge() {
#if ORACLE == 1
  assert(slot[known].who == want[c].who && slot[known].kind == want[c].kind);
  assert(!(acked & BIT(known)));
#elif ORACLE == 2
  assert(known == 0 || FILLED(known - 1));
#else
  assert(known == 0 || !(acked & BIT(known - 1)) || slot[known - 1].who == slot[known].prev);
  assert(known + 1 >= N || !(acked & BIT(known + 1)) || slot[known].who == slot[known + 1].prev);
#endif
  acked = acked | BIT(known);
  REACHED
}

#ifdef NEVER_READS_AGAIN
#define AFTER_LOSS READY
#else
#define AFTER_LOSS IDLE
#endif

#ifdef ACK_BEFORE_LINK
#define ACK_EARLY Acknowledge()
#else
#define ACK_EARLY skip
#endif

proctype Coordinator(byte c) {
  byte life;
  byte known, prev, gen; /* Its view of the log: how many records, the last one's nonce, the highest START. */
  byte term;             /* 1 + slot of its LEAD; 0: it does not lead. */
  byte counter;          /* Of generations; only a broken variant uses it. */
  byte k;
  do
  /* It reads, makes durable what it read, and reads it again. */
#ifdef NO_READER_SYNC
  :: atomic { stage[c] == IDLE -> Refresh(); stage[c] = READY }
#elif defined(NO_RECHECK)
  :: atomic { stage[c] == IDLE -> Refresh(); stage[c] = READ }
  :: atomic { stage[c] == READ -> NAMES_ON_DISK; stage[c] = READY }
#elif defined(SYNC_BEFORE_READ)
  :: atomic { stage[c] == IDLE -> NAMES_ON_DISK; stage[c] = READ }
  :: atomic { stage[c] == READ -> Refresh(); stage[c] = READY }
#else
  :: atomic { stage[c] == IDLE -> Refresh(); stage[c] = READ }
  :: atomic { stage[c] == READ -> NAMES_ON_DISK; stage[c] = SYNCED }
  :: atomic { stage[c] == SYNCED && (known == 0 || slot[known - 1].who == prev) -> stage[c] = READY }
  :: atomic { stage[c] == SYNCED && known > 0 && slot[known - 1].who != prev -> START_OVER; stage[c] = IDLE }
#endif

  /* What it may append. */
  :: atomic { stage[c] == READY && term == 0 && known < N -> ASK(LEAD, 0) }
#ifdef OWN_COUNTER
  :: atomic { stage[c] == READY && term > 0 && known < N -> counter++; ASK(START, counter) }
#else
  :: atomic { stage[c] == READY && term > 0 && known < N && (gen == 0 || FAULTS) -> ASK(START, gen + 1) }
#endif
  :: atomic { stage[c] == READY && term > 0 && gen > 0 && known < N -> ASK(COMMIT, gen) } /* Adopted, perhaps. */
  :: atomic { stage[c] == READY && term > 0 && known < N && FAULTS -> ASK(FINISH, gen) }

  /* It polls and finds a record that it did not write. */
#ifdef NEVER_STEPS_DOWN
  :: atomic { stage[c] == READY && term > 0 && known < N && FILLED(known) -> stage[c] = IDLE }
#else
  :: atomic { stage[c] == READY && term > 0 && known < N && FILLED(known) -> DROP_ROLE; stage[c] = IDLE }
#endif

  :: atomic { stage[c] == LINKING && reply[c] == LINK_OK -> reply[c] = 0; stage[c] = LINKED }
  :: atomic {
       stage[c] == LINKING && reply[c] == LOOK -> reply[c] = 0;
       if
       :: MINE -> stage[c] = LINKED
       :: !MINE -> /* Taken by another, or not to be seen: whatever it was, it is not acknowledged. */
#ifndef NEVER_STEPS_DOWN
          DROP_ROLE;
#endif
          CLEAR(want[c]); at[c] = 0; stage[c] = AFTER_LOSS
       fi
     }
#ifdef NO_FSYNC_AFTER_LINK
  :: atomic { stage[c] == LINKED -> stage[c] = DURABLE }
#else
  :: atomic { stage[c] == LINKED -> NAMES_ON_DISK; stage[c] = DURABLE }
#endif
  :: atomic {
       stage[c] == DURABLE ->
       if
       :: READ_BACK ->
#ifndef ACK_BEFORE_LINK
          Acknowledge();
#endif
          if
          :: want[c].kind == LEAD -> term = known + 1
          :: want[c].kind == START -> gen = want[c].gen
          :: want[c].kind == COMMIT -> skip
          :: want[c].kind == FINISH -> DROP_ROLE
          fi;
          MARK_DONE;
          prev = want[c].who; known++; stage[c] = READY
       :: !READ_BACK -> DROP_ROLE; START_OVER; stage[c] = IDLE /* A power cut took it. */
       fi;
       CLEAR(want[c]); at[c] = 0
     }

  /* It crashes. What it had asked for is still on its way. */
  :: atomic {
       life < LIVES - 1 && (term > 0 || stage[c] >= LINKING) && FAULTS -> /* Else there is nothing to lose. */
       life++;
       if
       :: sent[c] -> sent[NC + c] = true; at[NC + c] = at[c]; COPY(want[NC + c], want[c])
       :: !sent[c] -> skip
       fi;
       FORGET(c); reply[c] = 0;
       DROP_ROLE; START_OVER; counter = 0; stage[c] = IDLE
     }
  :: atomic { (stage[c] == READY && known == N) || stage[c] == DEAD -> break }
  od
}

init {
  atomic {
    byte i;
    for (i : 0 .. NC - 1) { run Coordinator(i) }
    for (i : 0 .. 2 * NC - 1) { run Wire(i) }
    run Power();
    i = 0
  }
}
