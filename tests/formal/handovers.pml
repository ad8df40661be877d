/* Chains of hand-overs: what must a coordinator wait for that finds several generations before it, that adopts one, or
   that begins a second one in its own term? Checked exhaustively by check.sh. One hand-over with its messages under way
   and its clocks is leases.pml, which proves the lengths of the waits; here they are given, and messages take no time.

   WHAT IS MODELLED
   - Coordinators of terms 1 to NT, in the order of their LEADs. All go on at the same time, whoever has been replaced
     too; one that crashed is one that does nothing more. Only the latest may append to the log.
   - Generations 1 to NG, each with members of its own: any of the NM nodes that have joined the term that starts it.
   - START (by terms after the first): a new generation of members that joined; each of them, and each that is left
     out, stops its old ranks when it is told.
   - ADOPT: no START; the coordinator goes on with the latest generation, if all its members have joined and are in it.
     If one of them has had a lease in it (it was told to step) the generation is open, and the adopter grants at once;
     else it first waits like one that starts.
   - OPEN: a generation may be granted leases when each older one is over that is not known to be: from the latest with
     a COMMIT in the log, or that a joined member was told to step in (for that one, all before were over), to the one
     before its own. A generation is over when for each of its members one of these holds:
       it has joined, and runs it no more;
       it has joined, and HA has passed since it was last given a lease or joined;
       this coordinator has not given it a lease, and HL has passed since its LEAD (USE_LOG);
       this coordinator has not given it a lease, and HS has passed since more than half of that generation's members
       have joined (USE_SUPPORT).
   - Authority to grant: leases.pml. USE_LOG and USE_SUPPORT: which of the two leases bounds it, and which waits
     there are. Everybody who can renew either does it all the time, which permits most.

   PROVED: no member holds a lease for a generation when a higher one has been given one. What the broken variants show:
   - ONLY_THE_LAST: to wait for the generation before is not enough. Term 2 starts generation 2 and dies before it has
     waited; term 3 finds all of generation 2, stops it at once, and starts generation 3 while generation 1 trains on.
   - MAJORITY_OF_THE_LAST: the majority must be one of each generation that is waited for, not of the last one.
   - FORGETS_OWN_LEASES: waits since LEAD and since the majority say nothing of leases that this term gave itself.
   - ADOPTS_WHOEVER_IS_THERE: takes over with some of the members missing, or elsewhere. ADOPTS_UNTOLD: takes over a
     generation that was started and never opened, as if it were running.
   - OLD_TERM_JOINS: a member goes back to an older term.

   WHAT IS NOT: clocks, messages under way, joins that are not answered (the coordinator knows at once). */

#ifndef NM
#define NM 2 /* Nodes. */
#endif
#ifndef NT
#define NT 3
#endif
#ifndef NG
#define NG 3
#endif
#ifndef HS
#define HS 1
#endif
#ifndef HA
#define HA 1
#endif
#ifndef HL
#define HL 2
#endif
#ifndef FIRST
#define FIRST ((1 << NM) - 1) /* Members of generation 1, bit by bit. */
#endif
#define MIN(a, b) ((a) < (b) -> (a) : (b))
#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define IN(m, g) (members[g] & (1 << (m)))
#define SINCE_MOST (HA > HS -> HA : HS)

/* The log. */
byte last_lead = 1, last_start = 1, last_commit = 1;
byte members[NG + 1];

/* Coordinators. Times are ticks left, waits ticks passed. */
byte leads[NT + 1];   /* The generation that it leads; 0: none yet. */
bool open[NT + 1]; /* It may grant leases for it. */
byte log_lease[NT + 1];
byte since_lead[NT + 1];
byte support[(NT + 1) * NM];
byte since[(NT + 1) * NM]; /* 0: the node did not join. 1 + ticks since it joined, or was given a lease. */
bool given[(NT + 1) * NM]; /* This coordinator gave the node a lease. */
#define AT(t, m) ((t) * NM + (m))

/* Nodes. */
byte term[NM];  /* That it joined. */
byte gen[NM];   /* That its ranks run; 0: none. */
bool told[NM];  /* It has had a lease in it. */
byte lease[NM];

byte highest = 1; /* Generation that a lease was given for. */

#ifdef USE_SUPPORT
#define JOIN(m, t) term[m] = t; support[AT(t, m)] = HS
#else
#define JOIN(m, t) term[m] = t
#endif

inline Authority(t) {
  authority = 255;
#ifdef USE_SUPPORT
  authority = HS;
  do
  :: authority > 0 ->
     count = 0; all = 0;
     for (k : 0 .. NM - 1) {
       all = all + (IN(k, leads[t]) -> 1 : 0);
       count = count + (IN(k, leads[t]) && support[AT(t, k)] >= authority -> 1 : 0)
     }
     if
     :: 2 * count > all -> break
     :: else -> authority--
     fi
  :: else -> break
  od;
  count = 0; all = 0; k = 0;
#endif
#ifdef USE_LOG
  authority = MIN(authority, log_lease[t]);
#endif
}

/* A heartbeat of member m comes to the coordinator of its term, with the answer. */
inline Exchange(m) {
  Authority(term[m]);
  if
  :: leads[term[m]] > 0 && open[term[m]] && gen[m] == leads[term[m]] && authority > 0 ->
     lease[m] = MAX(lease[m], MIN(HA, authority));
     told[m] = true; 
     if
     :: term[m] > 1 -> given[AT(term[m], m)] = true; since[AT(term[m], m)] = 1
     :: else
     fi;
     highest = MAX(highest, gen[m])
  :: else
  fi;
#ifdef REACH /* The last generation trains. */
  assert(highest < NG);
#endif
  authority = 0
}

#ifdef MAJORITY_OF_THE_LAST
#define OF_WHICH leads[t] - 1
#else
#define OF_WHICH g
#endif
#ifdef FORGETS_OWN_LEASES
#define OWN(m) false
#else
#define OWN(m) given[AT(t, m)]
#endif

#if defined(USE_LOG) && defined(USE_SUPPORT)
#define WAITED (since_lead[t] >= HL || 2 * count > all)
#elif defined(USE_LOG)
#define WAITED (since_lead[t] >= HL)
#else
#define WAITED (2 * count > all)
#endif
#define HAS_LEFT(m) (since[AT(t, m)] > HA || (since[AT(t, m)] > 0 && gen[m] != g))

/* Whether all generations before its own are over for coordinator t. */
inline Drained(t) {
  over = true;
#ifdef ONLY_THE_LAST
  g = leads[t] - 1;
#else
  g = last_commit;
  for (k : 0 .. NM - 1) {
    if
    :: term[k] == t && told[k] && gen[k] < leads[t] -> g = MAX(g, gen[k])
    :: else
    fi
  }
#endif
  do
  :: g < leads[t] ->
     count = 0; all = 0;
     for (k : 0 .. NM - 1) {
       all = all + (IN(k, OF_WHICH) -> 1 : 0);
       count = count + (IN(k, OF_WHICH) && since[AT(t, k)] > HS -> 1 : 0)
     }
     for (k : 0 .. NM - 1) {
       if
       :: !IN(k, g)
       :: IN(k, g) && HAS_LEFT(k)
       :: IN(k, g) && !HAS_LEFT(k) && !OWN(k) && WAITED
       :: else -> over = false
       fi
     }
     g++
  :: else -> break
  od;
  count = 0; all = 0; k = 0; g = 0
}

/* Whether coordinator t may take over the latest generation, and whether that is open. */
inline Adoptable(t) {
  over = true; evidence = false;
  for (k : 0 .. NM - 1) {
    if
    :: IN(k, last_start) ->
       over = over && term[k] == t && gen[k] == last_start;
       evidence = evidence || (term[k] == t && gen[k] == last_start && told[k])
    :: else
    fi
  }
  k = 0;
#ifdef ADOPTS_WHOEVER_IS_THERE
  over = true; evidence = true;
#endif
#ifdef ADOPTS_UNTOLD
  evidence = true;
#endif
}

inline Tick() {
  for (k : 0 .. NM - 1) {
    lease[k] = MAX(lease[k], 1) - 1;
  }
  k = 0;
  for (k : 0 .. (NT + 1) * NM - 1) {
    since[k] = (since[k] > 0 -> MIN(since[k], SINCE_MOST) + 1 : 0)
  }
  k = 0;
#ifdef USE_SUPPORT
  for (k : 0 .. (NT + 1) * NM - 1) { support[k] = (term[k % NM] == k / NM -> HS : MAX(support[k], 1) - 1) }
  k = 0;
#endif
#ifdef USE_LOG
  for (k : 1 .. NT) {
    log_lease[k] = (k == last_lead -> HL : MAX(log_lease[k], 1) - 1);
    since_lead[k] = (last_lead >= k && k > 1 -> MIN(since_lead[k] + 1, HL) : 0)
  }
  k = 0;
#endif
}

active proctype World() {
  byte m, t, k, g, count, all, authority;
  bool over, evidence;
  d_step {
    members[1] = FIRST; leads[1] = 1; open[1] = true;
#ifdef USE_LOG
    log_lease[1] = HL;
#endif
    for (m : 0 .. NM - 1) {
      if
      :: IN(m, 1) -> term[m] = 1; gen[m] = 1; told[m] = true; JOIN(m, 1)
      :: else
      fi
    }
    m = 0
  }
  do
  :: d_step { Tick() }

  /* Nodes. */
  :: atomic {
       select (m : 0 .. NM - 1);
       if
       :: lease[m] > 0 -> assert(gen[m] >= highest) /* It steps. */
       :: term[m] > 0 -> d_step { Exchange(m) }
       :: true -> /* It joins. */
          select (t : 1 .. NT);
          if
#ifdef OLD_TERM_JOINS
          :: t <= last_lead && t != term[m] ->
#else
          :: t <= last_lead && t > term[m] ->
#endif
             JOIN(m, t); since[AT(t, m)] = 1
          :: else
          fi
       :: term[m] > 0 && leads[term[m]] > gen[m] && IN(m, leads[term[m]]) ->
          gen[m] = leads[term[m]]; lease[m] = 0; told[m] = false
       :: term[m] > 0 && leads[term[m]] > gen[m] && gen[m] > 0 && !IN(m, leads[term[m]]) ->
          gen[m] = 0; lease[m] = 0; told[m] = false
       :: else
       fi;
       m = 0; t = 0
     }

  /* Coordinators. */
#ifdef USE_LOG
  :: atomic { last_lead < NT -> last_lead++; log_lease[last_lead] = HL }
#else
  :: atomic { last_lead < NT -> last_lead++ }
#endif
  :: atomic { /* START. */
       last_start < NG && last_lead > 1 ->
       t = last_lead;
       for (m : 0 .. NM - 1) {
         if
         :: term[m] == t -> all = all + (1 << m)
         :: true
         fi
       }
       if
       :: all > 0 -> last_start++; members[last_start] = all; leads[t] = last_start; open[t] = false
       :: else
       fi;
       all = 0; m = 0; t = 0
     }
  :: atomic { /* ADOPT. */
       leads[last_lead] == 0 ->
       t = last_lead;
       d_step { Adoptable(t) };
       if
       :: over -> leads[t] = last_start; open[t] = evidence
       :: else
       fi;
       over = false; evidence = false; t = 0
     }
  :: atomic { /* OPEN. */
       select (t : 1 .. NT);
       if
       :: leads[t] > 0 && !open[t] ->
          d_step { Drained(t) };
          open[t] = over; over = false
       :: else
       fi;
       t = 0
     }
  :: atomic { leads[last_lead] > last_commit && open[last_lead] -> last_commit = leads[last_lead] } /* COMMIT. */
  od
}
