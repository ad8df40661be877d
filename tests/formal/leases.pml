/* One hand-over under leases: may a member still step in the old generation when the new one steps? Checked
   exhaustively by check.sh. Chains of hand-overs, adoption and a second START in one term are in handovers.pml.

   WHAT IS MODELLED
   - Coordinator C1, of term 1, grants leases to the NM members of generation 1. It never stops trying: a crash of it is
     a C1 that does nothing more, which it may do here at any time.
   - Its authority ends when the first of two leases does. Log lease: LC from the SENDING of a poll of the log that the
     file server executed before a foreign record was linked. Support lease: LS from the time at which it SENT the stamp
     that a member's heartbeat echoes, for the members that make up more than half of generation 1.
   - A member's lease: from the SENDING of its heartbeat, for the lesser of LA and what is left of C1's authority when it
     answers. A member steps only under its lease, each by itself (BARRIER: only when all of them can, as collectives
     demand).
   - Coordinator C2 links LEAD of term 2, asks members to join (a member that joined never again answers C1, but its
     ranks may go on under the lease that they have), has members move to generation 2 (their ranks are stopped
     first), and says go when for each member of generation 1 one of these holds:
       moved    it has moved;
       WA       it has joined, and WA passed on C2's clock since C2 heard from it last;
       WL       WL passed on C2's clock since C2 knew its LEAD to be linked;
       WS       WS passed on C2's clock since C2 knew more than half of generation 1's members to have joined. With
                BY_AGE a member says on joining how long ago it got its last stamp of an older term; then WS counts from
                there, for each of those members.
   - Heartbeats, answers and polls are on their way for any time, are lost, doubled and reordered: what was sent stays
     deliverable until it can no longer matter. Of two messages of a kind on one way only the newer is kept: the older
     would change nothing.
     AT_ONCE: heartbeats and answers take no time; for sizes that would be too large otherwise.
   - NO_LOG_LEASE takes the first lease away, NO_SUPPORT the second: each bound holds without the other's help.

   TIME AND DRIFT. Every clock runs at a rate between 1 - rho and 1 + rho of real time, rho = 1/DRIFT, and may change its
   rate at will. Who holds something acts as if its clock were the slowest: a lease of L is used up to L/(1 - rho). Who
   waits, as if it were the fastest: W may be over after W/(1 + rho). As steps, grants and go are allowed, never
   demanded, every other rate gives only behaviours that are among these. One tick of the model is DRIFT/(DRIFT^2 - 1), so
   that both are whole numbers of ticks: HELD(L) = L (DRIFT + 1), WAITED(W) = W (DRIFT - 1), without rounding.

   WHAT IS PROVED, for DRIFT = 2 and 3 (and each wait that is one less fails):
     WL >= LC (1 + rho)/(1 - rho)   since LEAD, not START: LEAD already is the foreign record
     WS >= LS (1 + rho)/(1 - rho)   LA does not enter: no lease outlives the authority that gave it
     WA >= LA (1 + rho)/(1 - rho)
   Who allows 1 % for each clock needs 1.0203 L; 1.01 L is not enough. By the same arithmetic, shortening the members'
   leases by the drift would not shorten WL or WS: a lease may be given at the very end of the authority, so that is
   what would have to be shortened.

   THE POLL must reach the file server. One that a client's cache may answer proves nothing (-DSTALE_POLL fails), and
   WL goes with it; WS does not need the log.

   BARRIER ALONE protects as long as one member of the old generation has moved (-DMEMBER_IGNORES_LEASE -DBARRIER
   -DSOMEBODY_MOVED holds): a full step of generation 1 needs that member. It does not where the new generation has none
   of the old one's members, as with a second job or with spares (-DMEMBER_IGNORES_LEASE -DBARRIER fails).

   WHAT IS NOT: the log (run_log.pml), a step that is under way when the lease ends (a step is a point here: a rank
   must look at its lease where the step's effect becomes real), suspended machines whose monotonic clock stands still
   (rho does not bound them). */

#ifndef NM
#define NM 3 /* Members of generation 1. */
#endif
#ifndef DRIFT
#define DRIFT 2
#endif
#ifndef LC
#define LC 2
#endif
#ifndef LS
#define LS 1
#endif
#ifndef LA
#define LA 1
#endif
#define HELD(l) ((l) * (DRIFT + 1))
#define WAITED(w) ((w) * (DRIFT - 1))
#define OVER(l) (((l) * (DRIFT + 1) + DRIFT - 2) / (DRIFT - 1)) /* The least W with WAITED(W) >= HELD(L). */
#ifndef WL
#define WL OVER(LC)
#endif
#ifndef WS
#define WS OVER(LS)
#endif
#ifndef WA
#define WA OVER(LA)
#endif

#define OLD 0 /* States of a member. */
#define JOINED 1
#define MOVED 2

#define MIN(a, b) ((a) < (b) -> (a) : (b))
#define MAX(a, b) ((a) > (b) -> (a) : (b))

/* All times are ticks that are left, but for C2's waits, which are ticks that have passed. */
byte support[NM]; /* At C1: of the newest stamp that the member echoed. */
byte log_lease;   /* At C1. */
byte poll;        /* Of C1, on its way: what is left of the lease that it may become. */
bool poll_clean;  /* The server has executed it, and there was no foreign record. */

byte state[NM];
byte lease[NM];
byte heard[NM];  /* At the member: what is left of the newest stamp that it got from C1. */
byte beat[NM];   /* Heartbeat on its way: what is left of LA since it was sent. */
byte stamp[NM];  /* The stamp in it. */
byte answer[NM]; /* Answer on its way: what is left of the lease in it. */

bool lead, go;        /* Of C2. `go`: generation 2 may step. */
byte since_lead, since_majority;
byte since_heard[NM]; /* Of a member that joined. */

/* What is left of C1's authority. */
inline Authority() {
  authority = 255;
#ifndef NO_SUPPORT
#ifdef DUPLICATES_COUNT /* C1 counts heartbeats, of which one may come twice. */
#define ENOUGH (count > 0)
#else
#define ENOUGH (2 * count > NM)
#endif
  authority = HELD(LS);
  do
  :: authority > 0 ->
     count = 0;
     for (k : 0 .. NM - 1) {
       if
       :: support[k] >= authority -> count++
       :: else
       fi
     }
     if
     :: ENOUGH -> break
     :: else -> authority--
     fi
  :: else -> break
  od;
#endif
#ifndef NO_LOG_LEASE
  authority = MIN(authority, log_lease);
#endif
}

/* A heartbeat of member m comes to C1, which answers when it may. */
inline Receive(m) {
#ifdef SUPPORT_FROM_RECEIPT
  support[m] = HELD(LS);
#else
  support[m] = MAX(support[m], stamp[m]);
#endif
  Authority();
#ifdef GRANTS_WITHOUT_AUTHORITY
  authority = HELD(LA);
#elif defined(GRANTS_PAST_AUTHORITY)
  authority = (authority > 0 -> HELD(LA) : 0);
#endif
  authority = MIN(authority, HELD(LA));
#ifndef LEASE_FROM_RECEIPT
  authority = MAX(authority + beat[m], HELD(LA)) - HELD(LA); /* It runs since the sending of the heartbeat. */
#endif
  answer[m] = MAX(answer[m], authority);
  authority = 0; count = 0; k = 0
}

/* Whether C2 need not fear member m any more. */
inline Check(m) {
  over = state[m] == MOVED || (state[m] == JOINED && since_heard[m] >= WAITED(WA));
#ifndef NO_LOG_LEASE
  over = over || since_lead >= WAITED(WL);
#endif
#ifndef NO_SUPPORT
#ifdef BY_AGE
  count = 0;
  for (j : 0 .. NM - 1) {
    if
    :: state[j] != OLD && heard[j] + WAITED(WS) <= HELD(LS) -> count++
    :: else
    fi
  }
  over = over || 2 * count > NM;
  count = 0; j = 0;
#else
  over = over || since_majority >= WAITED(WS);
#ifdef MAJORITY_FROM_LEAD
  for (j : 0 .. NM - 1) { count = count + (state[j] != OLD -> 1 : 0) }
  over = over && 2 * count > NM;
  count = 0; j = 0;
#endif
#endif
#endif
}

#define DOWN(t) t = MAX(t, 1) - 1
#define UP(t, most) t = MIN(t + 1, most)

inline Tick() {
  for (k : 0 .. NM - 1) {
    DOWN(support[k]); DOWN(lease[k]); DOWN(heard[k]); DOWN(beat[k]); DOWN(stamp[k]);
#ifndef LEASE_FROM_RECEIPT
    DOWN(answer[k]);
#endif
    if
    :: state[k] == JOINED && !go -> UP(since_heard[k], WAITED(WA))
    :: else -> since_heard[k] = 0
    fi;
    count = count + (state[k] != OLD -> 1 : 0)
  }
  DOWN(log_lease); DOWN(poll);
  poll_clean = poll_clean && poll > 0;
#ifndef NO_LOG_LEASE
  if
  :: lead && !go -> UP(since_lead, WAITED(WL))
  :: else
  fi;
#endif
#ifdef MINORITY_IS_ENOUGH
#define MAJORITY (2 * count >= NM - 1)
#elif defined(MAJORITY_FROM_LEAD)
#define MAJORITY lead
#else
#define MAJORITY (2 * count > NM)
#endif
#if !defined(NO_SUPPORT) && !defined(BY_AGE)
  if
  :: MAJORITY && !go -> UP(since_majority, WAITED(WS))
  :: else
  fi;
#endif
  count = 0; k = 0
}

#ifdef MEMBER_IGNORES_LEASE
#define UNDER_LEASE(m) true
#else
#define UNDER_LEASE(m) (lease[m] > 0)
#endif
#ifdef MOVES_WITHOUT_STOPPING
#define RUNS(m) true
#else
#define RUNS(m) (state[m] != MOVED)
#endif
#define MAY_STEP(m) (RUNS(m) && UNDER_LEASE(m))
#ifdef ANSWERS_OLD_TERM
#define ANSWERS(m) true
#else
#define ANSWERS(m) (state[m] == OLD)
#endif
#ifdef STALE_POLL
#define FOREIGN_SEEN false
#else
#define FOREIGN_SEEN lead
#endif
#ifdef SOMEBODY_MOVED
#define ALSO (state[0] == MOVED)
#else
#define ALSO true
#endif

active proctype World() {
  byte m, j, k, count, authority;
  bool over;
  do
  :: d_step { Tick() }

  /* Anything that happens to one member. */
  :: atomic {
       select (m : 0 .. NM - 1);
       if
#ifdef BY_AGE
       :: state[m] == OLD -> heard[m] = HELD(LS) /* It gets a stamp that C1 just sent. */
#define NEWEST heard[m]
#else
#define NEWEST HELD(LS)
#endif
#ifdef AT_ONCE
       :: d_step { ANSWERS(m) ->
            beat[m] = HELD(LA); stamp[m] = NEWEST; Receive(m);
            lease[m] = MAX(lease[m], answer[m]); beat[m] = 0; stamp[m] = 0; answer[m] = 0
          }
#else
       :: ANSWERS(m) -> beat[m] = HELD(LA); stamp[m] = NEWEST
       :: beat[m] > 0 || stamp[m] > 0 -> d_step { Receive(m) }
#endif
       :: answer[m] > 0 && state[m] != MOVED -> lease[m] = MAX(lease[m], answer[m]); answer[m] = 0
#ifdef ANSWER_OF_ANY_GENERATION
       :: answer[m] > 0 && state[m] == MOVED -> go = true /* It takes it for a lease of generation 2, and steps. */
#endif
       :: lead && state[m] == OLD -> state[m] = JOINED
       :: lead && state[m] == JOINED ->
          state[m] = MOVED; since_heard[m] = 0;
#ifndef MOVES_WITHOUT_STOPPING
          lease[m] = 0
#endif
#ifndef BARRIER
       :: go && MAY_STEP(m) -> assert(false) /* It steps in generation 1. */
#endif
       :: else
       fi;
       m = 0
     }
#ifdef BARRIER
  :: go && MAY_STEP(0) && MAY_STEP(NM - 1) && MAY_STEP(NM / 2) -> assert(false)
#endif

  /* C1 polls the log: sending, execution by the server, reply. */
#ifndef NO_LOG_LEASE
  :: atomic { poll == 0 -> poll = HELD(LC) }
  :: atomic { poll > 0 && !poll_clean && !FOREIGN_SEEN -> poll_clean = true }
#ifdef LOG_LEASE_FROM_RECEIPT
  :: atomic { poll > 0 && poll_clean -> log_lease = HELD(LC); poll = 0; poll_clean = false }
#else
  :: atomic { poll > 0 && poll_clean -> log_lease = MAX(log_lease, poll); poll = 0; poll_clean = false }
#endif
#endif

  :: atomic { !lead -> lead = true }
  :: atomic {
       lead && !go && ALSO ->
#ifndef NO_WAIT
       over = true;
       for (m : 0 .. NM - 1) {
         if
         :: over -> Check(m)
         :: else
         fi
       }
#else
       over = true;
#endif
       m = 0;
       if
       :: over ->
#ifdef REACH /* Generation 2 may begin while a member of generation 1 has not even joined. */
          assert(state[0] != OLD);
#endif
          go = true; over = false; since_lead = 0; since_majority = 0
       :: else
       fi
     }
  od
}
